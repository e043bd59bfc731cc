"""Many sorted files become few: 128 are merged to one, and those again, until no more than 128 are left.

Whoever reads what is sorted opens all of its files at once. A merge reads each file from the first byte to the last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from diptych_shards.curate.state import committed_in_its_folder
from diptych_shards.run.engine import Engine

MOST_FILES = 128

MergeFiles = Callable[[Sequence[Path], Path], None]
"""Writes what is in the files, in order, to the path."""


def merge_to_few(
    engine: Engine, paths: Sequence[Path], merge: MergeFiles, merged_path: Callable[[int, int], Path]
) -> list[Path]:
    """At most MOST_FILES files with the same content; what is merged already is not merged again.

    merged_path: of a file by its level and number.
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
