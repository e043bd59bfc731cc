"""Read the rows of a build, of a pack or of other shards for a report, a bounded number at a time."""

from __future__ import annotations

import functools
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from diptych.data.shard_index_file import INDEX_FOLDER, Shard, ShardError, index_path, read_shard
from diptych.data.shard_locations import tars_at
from diptych.data.shards import ShardIndex
from diptych.files import check_folder
from diptych.terminal import counted, is_or_are, shown
from diptych_shards.metadata import columns_of_shard, facts_of_samples, parquet_of
from diptych_shards.run.out_folder import damaged, read_state
from diptych_shards.shard_build.shard_files import (
    SUCCESS,
    OutputOptions,
    is_done,
    read_failures,
    read_stats,
    shard_name,
)

if TYPE_CHECKING:
    import pyarrow

_ROWS_AT_ONCE = 5_000
_SIZES = ("width", "height", "original_width", "original_height")
_NO_SHARD = -1


@dataclass(frozen=True)
class Rows:
    """Some rows of one shard, as columns of equal length."""

    shard: int
    """The number of the shard; -1 for what was refused before there were shards."""
    numbers: np.ndarray
    """i64: which rows of the shard."""
    samples: np.ndarray
    """i64: which sample of the tar; -1 for what was refused."""
    reasons: np.ndarray
    """Objects: why each row was refused; empty if it was kept."""
    names: pyarrow.Array
    """Where it came from: a URL, or a path."""
    captions: pyarrow.Array | None
    """None if there are no captions."""
    messages: pyarrow.Array
    sizes: Mapping[str, np.ndarray]
    """i64 of width, height, original_width, original_height; 0 where not known."""


@dataclass
class ResultsReader(ABC):
    """Reads the output of a build or a pack, or other shards."""

    out: Path
    kind: str
    """`build`, `pack`, `select` or `shards`; for the last two, it is not known what was left out before."""
    finished: bool
    options: dict[str, Any]
    shards: int = 0
    num_bytes: int = 0
    """Size of the tars."""
    not_whole: list[str] = field(default_factory=list)
    """Names of the tars that are truncated or otherwise not whole; their shards are left out."""
    times: tuple[float, float] | None = None
    """When the first shard was started and the last one finished, in seconds since 1970."""
    has_urls: bool = False
    """Whether `names` are URLs; known once the rows are read."""

    @abstractmethod
    def rows(self) -> Iterator[Rows]:
        """All rows of the shards that are whole; reading them fills the counts of this object."""

    @abstractmethod
    def tar(self, shard: int) -> Path:
        """The path of a shard, by its number in `Rows`."""


def describe_not_whole(shards: Sequence[str]) -> str:
    """Say in one line that these shards are left out of the report."""
    others = " and others" if len(shards) > 1 else ""
    return (
        f"{counted(len(shards), 'shard')} {is_or_are(len(shards))} not whole and left out here: "
        f"{shown(shards[0])}{others}; diptych-shards verify says why"
    )


def open_results(out: Path) -> ResultsReader:
    """Open the output or the shards of a folder.

    Raises:
        ShardError: there are none, or they have no index.
        UserError: it is not a folder, or the state file of the command that made the shards is damaged.
    """
    check_folder(out, "shards")
    for name, kind in (("build.json", BuildReader), ("pack.json", PackReader), ("select.json", ShardReader)):
        path = out / INDEX_FOLDER / name
        if path.exists():
            state = read_state(path, "options")
            try:
                verdicts = {"verdicts": ", ".join(state["verdicts"])} if "verdicts" in state else {}
                return kind(out, path.stem, bool(state["finished"]), {**verdicts, **state["options"]})
            except (KeyError, TypeError) as error:
                raise damaged(path, error) from error
    tars = sorted(out.glob("*.tar"))
    if not tars:
        if (out / INDEX_FOLDER / "curate.json").exists():
            page = shown(out / INDEX_FOLDER / "report.html")
            raise ShardError(f"{shown(out)} holds pairs, not shards; curate itself writes their report: {page}")
        raise ShardError(
            f"{shown(out)} holds no shards; name the folder of a build, a pack or a select, or other shards"
        )
    if without := [tar for tar in tars if not index_path(tar).exists()]:
        raise ShardError(f"{shown(without[0])} has no index; diptych-shards index {shown(out)} writes it")
    return ShardReader(out, "shards", True, {})


class BuildReader(ResultsReader):
    """Reads a table's rows from the parquet files of its shards."""

    def rows(self) -> Iterator[Rows]:
        import pyarrow

        options, self.has_urls = self._output_options, True
        for number, stats in read_stats(self.out).items():
            if not is_done(self.out, number, options):
                self.not_whole.append(self.tar(number).name)
                continue
            start, end = self.times or (stats.start_time, stats.end_time)
            self.times = min(start, stats.start_time), max(end, stats.end_time)
            self.shards += 1
            self.num_bytes += self.tar(number).stat().st_size
            path = self.tar(number).with_suffix(".parquet")
            try:
                yield from self._rows_of(number, path, options)
            except (pyarrow.ArrowInvalid, OSError) as error:
                raise ShardError(f"{shown(path)} is damaged: {str(error).splitlines()[0]}; delete it and start the "
                                 f"same build again to rewrite the shard") from error  # fmt: skip

    def tar(self, shard: int) -> Path:
        return self.out / f"{shard_name(shard, self._output_options)}.tar"

    @property
    def _output_options(self) -> OutputOptions:
        names = ("rows_per_shard", "shard_digits", "compute_hash")
        return OutputOptions(**{name: self.options[name] for name in names if name in self.options})

    def _rows_of(self, number: int, path: Path, options: OutputOptions) -> Iterator[Rows]:
        import pyarrow
        import pyarrow.compute as compute
        import pyarrow.parquet

        reason_of = {
            row: reason for reason, rows in read_failures(self.out, number, options).items() for row in rows
        }  # fmt: skip
        first = samples = 0
        with pyarrow.parquet.ParquetFile(path) as file:
            has_captions = "caption" in file.schema_arrow.names
            columns = ["url", "status", "error_message", *_SIZES, *(["caption"] if has_captions else [])]
            for batch in file.iter_batches(_ROWS_AT_ONCE, columns=columns):
                numbers = np.arange(first, first + batch.num_rows)
                kept = compute.equal(batch["status"], SUCCESS).to_numpy(zero_copy_only=False)
                reasons = [
                    "" if is_kept else reason_of.get(row) or "unknown"
                    for row, is_kept in zip(numbers.tolist(), kept.tolist(), strict=True)
                ]
                yield Rows(
                    shard=number,
                    numbers=numbers,
                    samples=np.where(kept, samples + np.cumsum(kept) - 1, -1),
                    reasons=np.array(reasons, dtype=object),
                    names=compute.fill_null(batch["url"], ""),
                    captions=compute.fill_null(batch["caption"], "") if has_captions else None,
                    messages=compute.fill_null(batch["error_message"], ""),
                    sizes={name: compute.fill_null(batch[name], 0).to_numpy().astype(np.int64) for name in _SIZES},
                )
                first += batch.num_rows
                samples += int(kept.sum())


class ShardReader(ResultsReader):
    """Reads the samples of shards from the parquet next to each tar, or else from their own members."""

    origins: ClassVar[Sequence[str]] = ("url", "path")
    """Fields that record where a sample came from, best first."""

    def rows(self) -> Iterator[Rows]:
        index = self._opened
        for number, shard in enumerate(index.shards):
            self.shards += 1
            self.num_bytes += shard.num_bytes
            columns = _columns(index, number, (*self.origins, "caption", *_SIZES))
            for first in range(0, shard.samples, _ROWS_AT_ONCE):
                numbers = range(first, min(first + _ROWS_AT_ONCE, shard.samples))
                facts = facts_of_samples(index, number, numbers) if columns is None else _facts(columns, numbers)
                self.has_urls |= "url" in self.origins and any(fact.get("url") for fact in facts)
                yield self._kept(number, numbers, facts)

    def tar(self, shard: int) -> Path:
        return self._opened.shards[shard].path

    @functools.cached_property
    def _opened(self) -> ShardIndex:
        """The shards that are whole; the others are named in `not_whole`.

        Raises:
            ShardError: none is whole.
        """
        whole: list[Shard] = []
        errors: dict[str, ShardError] = {}
        for tar in tars_at(str(self.out)):
            try:
                whole.append(read_shard(tar))
            except OSError as error:
                errors[tar.name] = ShardError(f"{shown(error.filename)}: {error.strerror}")
            except ShardError as error:
                errors[tar.name] = error
        self.not_whole = list(errors)
        if not whole:
            raise next(iter(errors.values()))
        return ShardIndex(whole)

    def _kept(self, shard: int, numbers: Sequence[int], facts: Sequence[Mapping[str, Any]]) -> Rows:
        width, height = (np.array([_whole(fact.get(name)) for fact in facts]) for name in ("width", "height"))
        original_width, original_height = (
            np.array([_whole(fact.get(f"original_{name}", fact.get(name))) for fact in facts])
            for name in ("width", "height")
        )
        origins = [next((fact[name] for name in self.origins if fact.get(name)), "") for fact in facts]
        return Rows(
            shard=shard,
            numbers=np.array(numbers),
            samples=np.array(numbers),
            reasons=np.full(len(facts), "", dtype=object),
            names=_texts(origins),
            captions=_texts([f.get("caption") for f in facts]) if any("caption" in f for f in facts) else None,
            messages=_texts([""] * len(facts)),
            sizes=dict(zip(_SIZES, (width, height, original_width, original_height), strict=True)),
        )


class PackReader(ShardReader):
    """Reads the samples of a pack, and the files that it refused."""

    origins = ("path",)

    def rows(self) -> Iterator[Rows]:
        yield from super().rows()
        # A pack records no times; its shards have the times of their files.
        written = [shard.path.stat().st_mtime for shard in self._opened.shards]
        self.times = (min(written), max(written)) if written else None
        yield from self._refused()

    def _refused(self) -> Iterator[Rows]:
        path = self.out / INDEX_FOLDER / "rejected.jsonl"
        if not path.exists():
            return
        with open(path, "rb") as lines:
            first = 0
            while refused := [json.loads(line) for line in islice(lines, _ROWS_AT_ONCE)]:
                yield _refusals(first, refused)
                first += len(refused)


def _columns(index: ShardIndex, shard: int, names: Sequence[str]) -> dict[str, pyarrow.Array] | None:
    """Read the columns among these names that the parquet next to the tar has; None if there is no parquet."""
    file = parquet_of(index, shard)
    if file is None:
        return None
    with file:
        there = set(file.schema_arrow.names)
    return columns_of_shard(index, shard, [name for name in names if name in there])


def _facts(columns: Mapping[str, pyarrow.Array], rows: range) -> list[dict[str, Any]]:
    values = (column[rows.start : rows.stop].to_pylist() for column in columns.values())
    return [dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True)]


def _refusals(first: int, lines: Sequence[Mapping[str, Any]]) -> Rows:
    return Rows(
        shard=_NO_SHARD,
        numbers=np.arange(first, first + len(lines)),
        samples=np.full(len(lines), -1),
        reasons=np.array([str(line.get("reason") or "unknown") for line in lines], dtype=object),
        names=_texts([line.get("path") for line in lines]),
        captions=None,
        messages=_texts([line.get("detail") for line in lines]),
        sizes={name: np.zeros(len(lines), np.int64) for name in _SIZES},
    )


def _texts(values: Sequence[Any]) -> pyarrow.Array:
    """Make an Arrow array of texts; lone surrogates, which come from JSON escapes, become \\udXXX."""
    import pyarrow

    texts = ["" if value is None else str(value) for value in values]
    return pyarrow.array([text.encode("utf-8", "backslashreplace").decode() for text in texts], pyarrow.string())


def _whole(value: Any) -> int:
    """The value as a size; 0 if it is not one. Pandas writes doubles if some row has no size."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return int(value) if is_number and 0 < value < 2**31 and value == int(value) else 0
