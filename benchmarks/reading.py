"""Measure what a loader process pays for reading samples when its rank reads many shards at a time; prints JSON.

The shards are synthetic: sparse tars, each with the index of 10,000 samples of three members. For each number of shards
a process of its own reads the samples of planned batches as a loader process does before it decodes them: it plans a
piece, announces it to the kernel, and reads each sample's row of the index and its members. Times are microseconds of
the processor a sample, in the first batch, in which every shard is opened, and in later ones (`planning` is part of
them); megabytes are what the process grows by.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import xxhash
from benchmarks.index import in_new_process

from diptych.data.order import SampleOrder
from diptych.data.sample_reader import SampleReader
from diptych.data.shard_cache import OPEN_FILES
from diptych.data.shard_index_file import Member, TableBuilder, write_index
from diptych.data.shard_list import write_folder_list
from diptych.data.shards import open_index
from diptych.machine import allow_open_files

BATCH = 4096
SAMPLES_PER_SHARD = 10_000
MEMBER_BYTES = {"jpg": 20_000, "txt": 60, "json": 300}
TAR_BLOCK = 512
ROUNDS = 5


class EqualTable(TableBuilder):
    """The table of a shard, made once for many equal ones."""

    def __init__(self, num_samples: int) -> None:
        super().__init__()
        self.tar_bytes = 0
        for row in range(num_samples):
            members = []
            for suffix, size in MEMBER_BYTES.items():
                offset = self.tar_bytes + TAR_BLOCK
                members.append(Member(suffix, offset, size, xxhash.xxh3_64_intdigest(bytes(size))))
                self.tar_bytes = offset + -(-size // TAR_BLOCK) * TAR_BLOCK
            self.add(f"{row:09}", members)
        self._bytes = super().to_bytes()

    def to_bytes(self) -> bytes:
        return self._bytes


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.reading", description=__doc__)
    parser.add_argument("--shards", type=int, nargs="+", default=[100, 2000], metavar="N", help="default %(default)s")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="reading-benchmark-") as name:
        folder = Path(name)
        make_shards(folder, max(chosen.shards))
        measured = {str(number): in_new_process(measure, name, number) for number in chosen.shards}
    settings = {
        "unit": "microseconds",
        "batch": BATCH,
        "samples_per_shard": SAMPLES_PER_SHARD,
        "python": platform.python_version(),
    }
    print(json.dumps({"benchmark": "reading", "by_shards": measured, "settings": settings}))


def make_shards(folder: Path, number: int) -> None:
    (folder / "_index").mkdir()
    table = EqualTable(SAMPLES_PER_SHARD)
    for shard in range(number):
        tar = folder / f"{shard:05}.tar"
        with open(tar, "wb") as file:
            file.truncate(table.tar_bytes)
        write_index(tar, table, table.tar_bytes, f"{shard:064x}", skipped={})
    write_folder_list(folder)


def measure(folder: str, num_shards: int) -> dict[str, float]:
    """Read batches of the first `num_shards` shards."""
    allow_open_files(OPEN_FILES)
    index = open_index([f"{folder}/{shard:05}.tar" for shard in range(num_shards)])
    order = SampleOrder(index.counts, seed=0, global_batch_size=BATCH, shuffle_window=SAMPLES_PER_SHARD)
    members = iter(SampleReader(index, order, (0, BATCH), 0, ROUNDS + 1))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    first = _seconds(members)
    later = statistics.median(_seconds(members) for _ in range(ROUNDS))
    megabytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    start = time.process_time()
    for batch in range(ROUNDS):
        order.rows(batch)
    planning = (time.process_time() - start) / ROUNDS
    microseconds = {"first_batch": first, "later": later, "planning": planning}
    return {
        **{name: round(1e6 * each / BATCH, 1) for name, each in microseconds.items()},
        "megabytes": round(megabytes),
    }


def _seconds(members: Iterator[dict[str, Any]]) -> float:
    """Of the processor, to read one batch."""
    start = time.process_time()
    num_samples = 0
    for member in members:
        num_samples += not member
        if num_samples == BATCH:
            break
    assert num_samples == BATCH
    return time.process_time() - start


if __name__ == "__main__":
    main()
