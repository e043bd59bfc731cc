"""Measure what a run does with many shards before its first step; prints one line of JSON.

The shards are synthetic: sparse files of the size of a tar, each with the first line of an index. Each way to open them
runs in a process of its own, since its memory is measured: from the list of the folder (`all.index`), and from the
indexes of all shards, as without that list. Then: the bytes that rank 0 sends to each other rank, and the time in which
a loader process plans its rank's rows of some batches.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import pickle
import platform
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

from diptych.data.order import SampleOrder
from diptych.data.sample_reader import PLANNED_ROWS
from diptych.data.shard_index_file import TableBuilder, folder_list_path, index_path, write_index
from diptych.data.shard_list import write_folder_list
from diptych.data.shards import ShardIndex, open_index

GLOBAL_BATCH, RANKS = 32_768, 256
SHARD_BYTES = 600 << 20


class LongTable(TableBuilder):
    """Says that it has many samples, and writes none."""

    def __init__(self, samples: int):
        super().__init__()
        self._num_samples = samples

    def __len__(self) -> int:
        return self._num_samples

    def to_bytes(self) -> bytes:
        return b""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=100_000)
    parser.add_argument("--samples-per-shard", type=int, default=20_000)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make_shards(Path(folder), chosen.shards, chosen.samples_per_shard)
        without_list = in_new_process(measure, folder)
        seconds, _ = timed(write_folder_list, Path(folder))
        with_list = in_new_process(measure, folder)
        list_bytes = folder_list_path(Path(folder)).stat().st_size
    print(
        json.dumps(
            {
                "benchmark": "index",
                **with_list,
                "open_seconds_without_list": without_list["open_seconds"],
                "write_list_seconds": seconds,
                "list_megabytes": round(list_bytes / 1e6, 1),
                "settings": {
                    "shards": chosen.shards,
                    "samples": chosen.shards * chosen.samples_per_shard,
                    "global_batch": GLOBAL_BATCH,
                    "ranks": RANKS,
                    "python": platform.python_version(),
                },
            }
        )
    )


def make_shards(folder: Path, number: int, samples: int) -> None:
    (folder / "_index").mkdir()
    for shard in range(number):
        tar = folder / f"{shard:06d}.tar"
        with open(tar, "wb") as file:
            file.truncate(SHARD_BYTES)
        write_index(tar, LongTable(samples), SHARD_BYTES, f"{shard:064x}", skipped={})
        assert index_path(tar).exists()


def measure(folder: str) -> dict[str, Any]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    open_seconds, index = timed(open_index, folder)
    megabytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    fingerprint_seconds, _ = timed(lambda: index.fingerprint)
    sent = pickle.dumps(index)
    receive_seconds, _ = timed(pickle.loads, sent)
    return {
        "open_seconds": open_seconds,
        "open_megabytes": round(megabytes),
        "fingerprint_seconds": fingerprint_seconds,
        "sent_megabytes": round(len(sent) / 1e6, 1),
        "receive_seconds": receive_seconds,
        **plan(index),
    }


def plan(index: ShardIndex) -> dict[str, float]:
    """Seconds to plan rows of batches in mid-epoch: a rank's of the first batches, of later ones, and all of one."""
    order = SampleOrder(index.counts, seed=0, global_batch_size=GLOBAL_BATCH, shuffle_window=10_000)
    middle, rows = index.total_samples // GLOBAL_BATCH // 2, GLOBAL_BATCH // RANKS
    together = PLANNED_ROWS // rows
    pieces = [[(middle + turn * together + batch, 0, rows) for batch in range(together)] for turn in range(21)]
    first, *later = [timed(order.plan, some)[0] for some in pieces]
    whole, _ = timed(order.rows, middle)
    return {
        "plan_first_seconds": first,
        "plan_later_seconds": sorted(later)[10],
        "plan_rows": PLANNED_ROWS,
        "plan_global_batch_seconds": whole,
    }


def timed(function: Any, *arguments: Any) -> tuple[float, Any]:
    start = time.perf_counter()
    result = function(*arguments)
    return round(time.perf_counter() - start, 6), result


def in_new_process(function: Any, *arguments: Any) -> Any:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


if __name__ == "__main__":
    main()
