"""Counts of more different texts than fit in memory, in files sorted by text."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TextIO

MOST_RUNS = 64
"""Files that are merged at once."""


class DiskCounter:
    """Counts texts without tabs and line ends; whenever too many are in memory they go to a sorted file."""

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
                merged = self._write(_merged(self._runs))
                for run in self._runs:
                    run.unlink()
                self._runs = [merged]

    def items(self) -> Iterator[tuple[str, int]]:
        """Each text once, with its count, in the order of code points."""
        yield from _merged(self._runs, sorted(self._counts.items()))

    def _write(self, items: Iterable[tuple[str, int]]) -> Path:
        self._num_files += 1
        path = self._folder / str(self._num_files)
        write_counts(path, items)
        return path


def write_counts(path: Path, items: Iterable[tuple[str, int]]) -> None:
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{text}\t{count}\n" for text, count in items)


def read_counts(paths: Iterable[Path]) -> Iterator[tuple[str, int]]:
    """Each text of all the files once, in the order of code points."""
    yield from _merged(paths)


def merge_counts(paths: Iterable[Path], into: Path) -> None:
    write_counts(into, _merged(paths))


def _merged(runs: Iterable[Path], *more: Iterable[tuple[str, int]]) -> Iterator[tuple[str, int]]:
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
