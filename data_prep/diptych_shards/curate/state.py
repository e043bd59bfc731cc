"""OUT on disk: what is finished, and for which pairs and options.

At the top of OUT there are parts of the result and `_index/`; all else is in there: `curate.json` (what was asked),
`report.json` (the last to be written: the run is complete), and until then `work/` (what is known of each unit).
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from diptych.data.shard_index_file import INDEX_FOLDER
from diptych.files import commit_file, committed, locked
from diptych.terminal import shown
from diptych_shards.curate.options import CurateError
from diptych_shards.run.out_folder import begun_otherwise, read_state


class Output:
    """The paths in OUT."""

    def __init__(self, out: Path):
        self.out = out
        self.index = out / INDEX_FOLDER
        self.work = self.index / "work"
        self.dropped = self.index / "dropped"
        self.request = self.index / "curate.json"
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

    def check(self, request: dict[str, Any]) -> None:
        """See that OUT is new, or that a run of the same request was stopped or completed there.

        Raises:
            CurateError: it holds something else.
        """
        if self.request.exists():
            before = read_state(self.request, "options")
            differing = [name for name in request if name != "options" and before.get(name) != request[name]]
            if differing:
                raise CurateError(
                    f"{shown(self.out)} was begun with other {', '.join(differing)}; give those again, or another OUT"
                )
            if told := begun_otherwise(self.out, before["options"], request["options"]):
                raise CurateError(told)
        elif self.out.is_dir():
            if any(child.name != INDEX_FOLDER for child in self.out.iterdir()) or self.report.exists():
                raise CurateError(f"{shown(self.out)} holds something else; name a new or empty folder")
        elif self.out.exists():
            raise CurateError(f"{shown(self.out)} is not a folder")

    def prepare(self, request: dict[str, Any]) -> None:
        """Write down what is to be done."""
        self.work.mkdir(parents=True, exist_ok=True)
        if not self.request.exists():
            commit_file(self.request, json.dumps(request, indent=1, sort_keys=True).encode())

    @contextmanager
    def kept_to_ourselves(self) -> Iterator[None]:
        """Until the end, however it comes; then what a killed process left half-written is removed."""
        with locked(self.index, "curate"):
            for folder in (self.out, self.index, self.work, self.dropped):
                for partial in folder.glob("*.partial"):
                    partial.unlink()
            yield

    def finish(self) -> None:
        shutil.rmtree(self.work, ignore_errors=True)


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
