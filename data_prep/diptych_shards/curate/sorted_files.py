"""Records that are more than fit in memory, in files sorted by their first field, `key` (uint64)."""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from diptych.files import commit_file

BLOCK_RECORDS = 8_192


def write_sorted(path: Path, records: np.ndarray) -> None:
    """The records as a file of their own, whole or not at all."""
    commit_file(path, records[np.argsort(records["key"], kind="stable")].tobytes())


def num_records(paths: Sequence[Path], dtype: np.dtype) -> int:
    return sum(os.path.getsize(path) for path in paths) // dtype.itemsize


def read_range(paths: Sequence[Path], dtype: np.dtype, low: int, high: int) -> np.ndarray:
    """All records with low <= key < high, those of one file after those of another; nothing else is read."""
    found = [np.zeros(0, dtype)]
    for path in paths:
        if os.path.getsize(path):
            keys = np.memmap(path, dtype, "r")["key"]
            first, last = (bisect_left(keys, bound, key=int) for bound in (low, high))
            found.append(np.fromfile(path, dtype, last - first, offset=first * dtype.itemsize))
    return np.concatenate(found)


def merge_records(dtype: np.dtype, paths: Sequence[Path], into: Path) -> None:
    """As `merge_to_few` wants it; holds one block of each file."""
    with open(into, "wb") as file:
        for records in _merged(paths, dtype):
            file.write(records.tobytes())


def _merged(paths: Sequence[Path], dtype: np.dtype) -> Iterator[np.ndarray]:
    """The records of all files in the order of their keys, some at a time."""
    with ExitStack() as stack:
        files = [stack.enter_context(open(path, "rb", buffering=0)) for path in paths]
        blocks = [np.zeros(0, dtype) for _ in files]
        while True:
            blocks = [
                block if len(block) else np.fromfile(file, dtype, BLOCK_RECORDS)
                for block, file in zip(blocks, files, strict=True)
            ]
            lasts = [block["key"][-1] for block in blocks if len(block)]
            if not lasts:
                return
            # What a file holds beyond its block has no key below that of the block's last record.
            ends = [np.searchsorted(block["key"], min(lasts), side="right") for block in blocks]
            ready = np.concatenate([block[:end] for block, end in zip(blocks, ends, strict=True)])
            yield ready[np.argsort(ready["key"], kind="stable")]
            blocks = [block[end:] for block, end in zip(blocks, ends, strict=True)]
