"""Check that the files of a build agree: parquet, statistics and outcomes of each shard with its tar."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from diptych.data.shard_index_file import INDEX_FOLDER, Sample, ShardError
from diptych.data.shards import ShardIndex
from diptych.terminal import counted, shown
from diptych_shards.run.out_folder import damaged, read_state
from diptych_shards.shard_build.shard_files import (
    FAILED_TO_DOWNLOAD,
    FAILED_TO_RESIZE,
    SUCCESS,
    OutputOptions,
    ShardStats,
    is_done,
    read_failures,
    read_stats,
    shard_name,
)
from diptych_shards.tables.json_text import json_texts, template

if TYPE_CHECKING:
    import pyarrow

_ROWS_AT_ONCE = 1_000
_WAY_OUT = "start the build again to rewrite the shard"


@dataclass(frozen=True)
class BuildCheck:
    """A finished build; each of its shards has its statistics."""

    out: Path
    options: OutputOptions
    stats: dict[str, tuple[int, ShardStats]]
    """The number and the statistics of each shard, by the name of its tar."""

    @classmethod
    def of(cls, out: Path, index: ShardIndex) -> BuildCheck | None:
        """Open the build in a folder; None if the folder holds none.

        Raises:
            ValueError: its `build.json` is damaged.
            ShardError: it has not finished, or a shard or one of its files is missing.
        """
        path = out / INDEX_FOLDER / "build.json"
        try:
            state = read_state(path, "options")
            finished, options = state["finished"], _output_options(state["options"])
            outcomes = Counter(state.get("outcomes") or {})
        except FileNotFoundError:
            return None
        except (KeyError, TypeError) as error:
            raise damaged(path, error) from error
        if not finished:
            raise ShardError(f"the build in {shown(out)} has not finished; start the same command again")
        stats = {f"{shard_name(number, options)}.tar": (number, stats) for number, stats in read_stats(out).items()}
        _check_files(out, index, set(stats))
        rows, successes = sum(s.count for _, s in stats.values()), sum(s.successes for _, s in stats.values())
        if (rows, successes) != (outcomes.total(), outcomes[SUCCESS]):
            raise ShardError(f"{shown(out)} has shards of {counted(rows, 'row')}, {successes:,} stored; the build left "
                             f"{outcomes.total():,} and {outcomes[SUCCESS]:,}: one is missing; {_WAY_OUT}")  # fmt: skip
        return cls(out, options, stats)

    def check_shard(self, index: ShardIndex, shard: int) -> None:
        """Compare the statistics, outcomes and parquet of a shard with its tar, whose bytes were checked before.

        Raises:
            ShardError: they differ; it names the first difference.
        """
        import pyarrow

        number, stats = self.stats[index.shards[shard].name]
        name = shard_name(number, self.options)
        parquet = self.out / f"{name}.parquet"
        statuses: Counter[str] = Counter()
        try:
            failed = self._failed_rows(number)
            for batch in _batches(parquet):
                self._check_rows(index, shard, batch, statuses, failed)
                statuses.update(batch["status"].to_pylist())
        except (pyarrow.ArrowException, OSError, KeyError, UnicodeError) as error:
            raise ShardError(f"{shown(parquet)} cannot be read ({shown(error)}); {_WAY_OUT}") from error
        in_stats = (stats.count, stats.successes, stats.failed_to_download, stats.failed_to_resize)
        by_status = (statuses[status] for status in (SUCCESS, FAILED_TO_DOWNLOAD, FAILED_TO_RESIZE))
        in_parquet = (statuses.total(), *by_status)
        if in_stats != in_parquet:
            raise ShardError(f"{name}_stats.json counts {_counts(in_stats)}; {name}.parquet has {_counts(in_parquet)}")
        if statuses[SUCCESS] != index.shards[shard].samples:
            raise ShardError(f"{name}.tar holds {counted(index.shards[shard].samples, 'sample')}, {name}.parquet says "
                             f"{statuses[SUCCESS]:,}; {_WAY_OUT}")  # fmt: skip
        if not is_done(self.out, number, self.options):
            raise ShardError(f"{shown(parquet)} has another size than it was written with; {_WAY_OUT}")

    def _failed_rows(self, number: int) -> set[int]:
        try:
            return {row for rows in read_failures(self.out, number, self.options).values() for row in rows}
        except (OSError, ValueError, IndexError, TypeError, AttributeError) as error:
            path = self.out / INDEX_FOLDER / f"{shard_name(number, self.options)}.outcomes"
            raise ShardError(f"{shown(path)} is missing or damaged; {_WAY_OUT}") from error

    def _check_rows(
        self, index: ShardIndex, shard: int, batch: pyarrow.RecordBatch, before: Counter[str], failed: set[int]
    ) -> None:
        """Compare rows of the parquet with the samples of the tar.

        before: how many rows before these have each status.
        """
        name = index.shards[shard].name.removesuffix(".tar")
        layout = template(batch.schema.names)
        keys, statuses = batch["key"].to_pylist(), batch["status"].to_pylist()
        texts = zip(*(json_texts(column) for column in batch.columns), strict=True)
        sample = before[SUCCESS]
        for row, (key, status, values) in enumerate(zip(keys, statuses, texts, strict=True), start=before.total()):
            place = f"{name}.parquet: row {row} (key {shown(key)})"
            if (status == SUCCESS) == (row in failed):
                raise ShardError(
                    f"{place} has the status {shown(status)}, {INDEX_FOLDER}/{name}.outcomes says otherwise"
                )
            if status != SUCCESS:
                continue
            if sample >= index.shards[shard].samples:
                raise ShardError(f"{place} is not in {name}.tar, which holds {counted(sample, 'sample')}; {_WAY_OUT}")
            stored = index.sample(shard, sample)
            if stored.key != key:
                raise ShardError(f"{place} is not in {name}.tar, where {shown(stored.key)} is in its place; {_WAY_OUT}")
            _check_members(place, stored, (layout % values).encode())
            sample += 1


def _check_members(place: str, sample: Sample, facts: bytes) -> None:
    """Compare the members of a sample with its row.

    facts: what its JSON member should contain.
    """
    by_suffix = {member.suffix: member for member in sample.members}
    if sample.picture_suffix is None:
        raise ShardError(f"{place} has no picture in the tar; {_WAY_OUT}")
    member = by_suffix.get("json")
    if member is None or (member.size, member.xxh3) != (len(facts), xxhash.xxh3_64_intdigest(facts)):
        raise ShardError(f"{place} differs from its .json in the tar; {_WAY_OUT}")


def _check_files(out: Path, index: ShardIndex, with_stats: set[str]) -> None:
    tars = {shard.name for shard in index.shards}
    for tar in sorted(tars | with_stats):
        name = tar.removesuffix(".tar")
        for path in (out / tar, out / f"{name}.parquet", out / f"{name}_stats.json"):
            if not path.exists():
                raise ShardError(f"{shown(path)} is missing, {name} has other files; {_WAY_OUT}")
        if tar not in with_stats:
            raise ShardError(f"{shown(out / f'{name}_stats.json')} is damaged; {_WAY_OUT}")


def _batches(parquet: Path) -> Iterator[pyarrow.RecordBatch]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(parquet) as file:
        yield from file.iter_batches(_ROWS_AT_ONCE)


def _output_options(options: dict[str, Any]) -> OutputOptions:
    return OutputOptions(**{name: options[name] for name in OutputOptions.__dataclass_fields__})


def _counts(counts: tuple[int, ...]) -> str:
    return "{:,} rows: {:,} stored, {:,} not downloaded, {:,} not resized".format(*counts)
