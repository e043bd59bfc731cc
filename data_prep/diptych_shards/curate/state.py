"""OUT on disk: what is finished, and for which pairs and options.

At the top of OUT there are parts of the result and `_index/`; all else is in there: `curate.json` (what was asked),
`report.json` (the last to be written: the run is complete), and until then `work/` (what is known of each unit).
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from diptych.data.shard_index_file import INDEX_FOLDER
from diptych.files import commit_file, committed


class Output:
    """The paths in OUT."""

    def __init__(self, out: Path):
        self.out = out
        self.index = out / INDEX_FOLDER
        self.work = self.index / "work"
        self.dropped = self.index / "dropped"
        self.report = self.index / "report.json"
        self.page = self.index / "report.html"
        self.queries = self.index / "queries.parquet"

    def examined(self, unit: int) -> Path:
        return self.work / f"{unit:06}.examined.npz"

    def records(self, unit: int) -> Path:
        return self.work / f"{unit:06}.records"

    def duplicates(self, share: int) -> Path:
        return self.work / f"duplicates_{share:06}"

    def merged(self, kind: str, level: int, number: int) -> Path:
        return self.work / f"merged_{kind}_{level}_{number:06}"

    def counts(self) -> Path:
        return self.work / "counts.npy"

    def decided(self, unit: int) -> Path:
        return self.work / f"{unit:06}.decided.npy"

    def part(self, number: int) -> Path:
        return self.out / f"{number:05}.parquet"

    def dropped_part(self, number: int) -> Path:
        return self.dropped / f"{number:05}.parquet"

    def examples(self, number: int) -> Path:
        return self.work / f"{number:05}.examples.json"

    def kept_facts(self, number: int) -> Path:
        return self.work / f"{number:05}.kept.json"


@contextmanager
def committed_in_its_folder(path: Path) -> Iterator[Path]:
    """`committed`, in a folder that need not be there yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with committed(path) as partial:
        yield partial


def commit_array(path: Path, array: np.ndarray) -> None:
    file = io.BytesIO()
    np.save(file, array)
    commit_file(path, file.getvalue())


def commit_arrays(path: Path, **arrays: np.ndarray) -> None:
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]
    commit_file(path, file.getvalue())
