"""Sort records, and count texts, that do not fit in memory: write sorted files, and merge many to few.

Readers open all sorted files at once. So each 128 are merged to one, and the results again, until at most 128 are left.
A merge reads each file from the first byte to the last.
"""

from __future__ import annotations

import heapq
import os
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TextIO

import numpy as np

from diptych.files import commit_file
from diptych_shards.curate.state import committed_in_its_folder
from diptych_shards.run.engine import Engine

MOST_FILES = 128

MergeFiles = Callable[[Sequence[Path], Path], None]
"""Merges sorted files into one at the path."""


def merge_to_few(
    engine: Engine, paths: Sequence[Path], merge: MergeFiles, merged_path: Callable[[int, int], Path]
) -> list[Path]:
    """Merge files until at most MOST_FILES are left; what is merged already is not merged again.

    merged_path: gives the path of a merged file from its level and number.
    """
    found = list(paths)
    level = 0
    while len(found) > MOST_FILES:
        firsts = range(0, len(found), MOST_FILES)
        merges = [
            _Merge(tuple(found[first : first + MOST_FILES]), merged_path(level, number))
            for number, first in enumerate(firsts)
        ]
        found = list(engine.map(partial(_merge, merge), merges))
        level += 1
    return found


@dataclass(frozen=True)
class _Merge:
    paths: tuple[Path, ...]
    into: Path


def _merge(merge: MergeFiles, one: _Merge) -> Path:
    if not one.into.exists():
        with committed_in_its_folder(one.into) as unfinished:
            merge(one.paths, unfinished)
    return one.into


BLOCK_RECORDS = 8_192


def write_sorted(path: Path, records: np.ndarray) -> None:
    """Write the records, sorted, to a file; it is there whole or not at all."""
    commit_file(path, records[np.argsort(records["key"], kind="stable")].tobytes())


def num_records(paths: Sequence[Path], dtype: np.dtype) -> int:
    return sum(os.path.getsize(path) for path in paths) // dtype.itemsize


def read_range(paths: Sequence[Path], dtype: np.dtype, low: int, high: int) -> np.ndarray:
    """Read all records with low <= key < high, file by file; nothing else is read."""
    found = [np.zeros(0, dtype)]
    for path in paths:
        if os.path.getsize(path):
            keys = np.memmap(path, dtype, "r")["key"]
            first, last = (bisect_left(keys, bound, key=int) for bound in (low, high))
            found.append(np.fromfile(path, dtype, last - first, offset=first * dtype.itemsize))
    return np.concatenate(found)


def merge_records(dtype: np.dtype, paths: Sequence[Path], into: Path) -> None:
    """Merge sorted files of records, as `merge_to_few` needs it; holds one block of each file in memory."""
    with open(into, "wb") as file:
        for records in _merged_records(paths, dtype):
            file.write(records.tobytes())


def _merged_records(paths: Sequence[Path], dtype: np.dtype) -> Iterator[np.ndarray]:
    """Yield the records of all files in the order of their keys, some at a time."""
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
            # No record of a file beyond its block has a smaller key than the block's last record.
            ends = [np.searchsorted(block["key"], min(lasts), side="right") for block in blocks]
            ready = np.concatenate([block[:end] for block, end in zip(blocks, ends, strict=True)])
            yield ready[np.argsort(ready["key"], kind="stable")]
            blocks = [block[end:] for block, end in zip(blocks, ends, strict=True)]


MOST_RUNS = 64
"""Files of counts that are merged at once."""


class DiskCounter:
    """Counts texts without tabs and line ends; writes the counts to a sorted file when too many are in memory."""

    def __init__(self, folder: Path, most_in_memory: int = 1_000_000):
        folder.mkdir()
        self._folder = folder
        self._most_in_memory = most_in_memory
        self._counts: Counter[str] = Counter()
        self._runs: list[Path] = []
        self._num_files = 0

    def add(self, texts: Iterable[str]) -> None:
        self._counts.update(texts)
        if len(self._counts) > self._most_in_memory:
            self._runs.append(self._write(sorted(self._counts.items())))
            self._counts.clear()
            if len(self._runs) == MOST_RUNS:
                merged = self._write(_merged_counts(self._runs))
                for run in self._runs:
                    run.unlink()
                self._runs = [merged]

    def items(self) -> Iterator[tuple[str, int]]:
        """Yield each text once, with its count, in the order of code points."""
        yield from _merged_counts(self._runs, sorted(self._counts.items()))

    def _write(self, items: Iterable[tuple[str, int]]) -> Path:
        self._num_files += 1
        path = self._folder / str(self._num_files)
        write_counts(path, items)
        return path


def write_counts(path: Path, items: Iterable[tuple[str, int]]) -> None:
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{text}\t{count}\n" for text, count in items)


def read_counts(paths: Iterable[Path]) -> Iterator[tuple[str, int]]:
    """Read each text of all files once, with its count, in the order of code points."""
    yield from _merged_counts(paths)


def merge_counts(paths: Iterable[Path], into: Path) -> None:
    write_counts(into, _merged_counts(paths))


def _merged_counts(runs: Iterable[Path], *more: Iterable[tuple[str, int]]) -> Iterator[tuple[str, int]]:
    files = [open(path, encoding="utf-8", newline="\n") for path in runs]
    try:
        items = heapq.merge(*map(_read, files), *more, key=itemgetter(0))
        for text, same in groupby(items, key=itemgetter(0)):
            yield text, sum(count for _, count in same)
    finally:
        for file in files:
            file.close()


def _read(file: TextIO) -> Iterator[tuple[str, int]]:
    for line in file:
        text, count = line.rstrip("\n").split("\t")
        yield text, int(count)
