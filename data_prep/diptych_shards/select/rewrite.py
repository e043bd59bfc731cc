"""Write new shards of the samples that verdicts keep.

The verdicts alone decide which sample goes to which shard, before a picture is read. So every shard can be written by
itself: a finished one is kept, the others are written again, and the bytes come out the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet

from diptych.data.shard_index_file import ShardError, index_path, read_shard
from diptych.data.shard_list import write_folder_list
from diptych.data.shard_writer import ShardWriter
from diptych.data.shards import ShardIndex
from diptych.errors import UserError
from diptych.files import committed
from diptych.terminal import shown
from diptych_shards.metadata import parquet_of, rows_of, table_path
from diptych_shards.run.engine import Engine
from diptych_shards.run.out_folder import OutFolder
from diptych_shards.run.progress import Progress
from diptych_shards.select.verdicts import Verdict, kept_by_all

_FORMAT = "diptych-select-2"


@dataclass(frozen=True)
class Written:
    """The contents of the new folder."""

    shards: int
    samples: int
    num_bytes: int


@dataclass(frozen=True)
class _Planned:
    """One new shard: rows of one or more old ones."""

    name: str
    parts: Sequence[tuple[int, np.ndarray]]
    """(number of the old shard, i64 rows)"""

    @property
    def samples(self) -> int:
        return sum(len(rows) for _, rows in self.parts)


def rewrite(
    index: ShardIndex, verdicts: Sequence[Verdict], out: Path, samples_per_shard: int | None, engine: Engine
) -> Written:
    """Write the samples that all the verdicts keep to `out`, or continue to write them.

    samples_per_shard: if None, each old shard that keeps a sample becomes a new one of the same name.

    Raises:
        UserError: nothing is kept, or `out` holds something else, or other samples.
        ShardError: a shard is damaged.
    """
    planned = _plan(index, verdicts, samples_per_shard)
    if not planned:
        names = ", ".join(verdict.name for verdict in verdicts)
        raise UserError(f"{names} together keep no sample; choose verdicts with --verdict, or delete one")
    inputs = {"shards": index.fingerprint, "verdicts": {verdict.name: verdict.sha256 for verdict in verdicts}}
    folder = OutFolder(out, "select", format=_FORMAT, options={"samples_per_shard": samples_per_shard}, inputs=inputs)
    with folder.opened(finished=False):
        total = sum(shard.samples for shard in planned)
        progress = Progress(total, "sample")
        pending = [shard for shard in planned if not _is_finished(index, out, shard)]
        progress.add(total - sum(shard.samples for shard in pending))
        try:
            for shard, _ in zip(
                pending,
                engine.map(partial(_write, index, out), pending, lost=_lost),
                strict=True,
            ):
                progress.add(shard.samples)
                progress.shard_is_done(shown(shard.name))
        finally:
            progress.close()
        written = [read_shard(out / shard.name) for shard in planned]
        write_folder_list(out)
        folder.record(finished=True)
        return Written(len(written), sum(s.samples for s in written), sum(s.num_bytes for s in written))


def _plan(index: ShardIndex, verdicts: Sequence[Verdict], samples_per_shard: int | None) -> list[_Planned]:
    parts = [(n, np.flatnonzero(kept_by_all(verdicts, index, n))) for n in range(len(index.shards))]
    if samples_per_shard is None:
        return [_Planned(index.shards[number].name, [(number, rows)]) for number, rows in parts if len(rows)]
    planned: list[_Planned] = []
    pending: list[tuple[int, np.ndarray]] = []
    room = samples_per_shard
    for number, rows in parts:
        while len(rows):
            pending.append((number, rows[:room]))
            room -= len(pending[-1][1])
            rows = rows[len(pending[-1][1]) :]
            if not room:
                planned.append(_Planned(f"{len(planned):05d}.tar", pending))
                pending, room = [], samples_per_shard
    if pending:
        planned.append(_Planned(f"{len(planned):05d}.tar", pending))
    return planned


def _is_finished(index: ShardIndex, out: Path, planned: _Planned) -> bool:
    """Whether the shard is there, of the size that its index gives, with the rows of its parquet file."""
    tar = out / planned.name
    try:
        return read_shard(tar).samples == planned.samples and _num_rows(tar) == sum(
            len(rows) for number, rows in planned.parts if table_path(index, number).exists()
        )
    except (FileNotFoundError, ShardError):
        return False


def _num_rows(tar: Path) -> int:
    try:
        return int(pyarrow.parquet.read_metadata(tar.with_suffix(".parquet")).num_rows)
    except (FileNotFoundError, pyarrow.ArrowInvalid):
        return 0


def _write(index: ShardIndex, out: Path, planned: _Planned) -> None:
    if _is_finished(index, out, planned):  # by a process that was lost before it could report it
        return
    index_path(out / planned.name).unlink(missing_ok=True)
    # The parquet first: a shard is finished when its index exists, which the writer commits last.
    _write_parquet(index, planned, (out / planned.name).with_suffix(".parquet"))
    with ShardWriter(out, planned.name) as writer:
        for key, members in _samples(index, planned):
            writer.add(key, members)


def _lost(planned: _Planned) -> None:
    raise UserError(f"{planned.name}: the process that wrote it died, twice; see whether memory runs out")


def _samples(index: ShardIndex, planned: _Planned) -> Iterator[tuple[str, dict[str, bytes]]]:
    for number, rows in planned.parts:
        for sample in index.samples(number, rows.tolist()):
            yield sample.key, index.read(sample)


def _write_parquet(index: ShardIndex, planned: _Planned, path: Path) -> None:
    """Write the rows of the samples in their order; no file if no shard had one."""
    tables = []
    for number, rows in planned.parts:
        file = parquet_of(index, number)
        if file is None:
            continue
        with file:
            table = file.read()
        keys = index.keys(number)
        places = rows_of(table["key"].to_pylist(), [keys[row] for row in rows.tolist()], index.shards[number].name)
        tables.append(table.take(pyarrow.array(places)))
    if not tables:
        return
    with committed(path) as partial:
        whole = pyarrow.concat_tables(tables, promote_options="default").combine_chunks()
        pyarrow.parquet.write_table(whole, partial)
