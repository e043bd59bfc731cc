"""Read and write verdicts: which samples of some shards a command keeps, and why it leaves out the others.

`SHARDS/_index/select/NAME.parquet` has one row a sample, in the order of the shards, a row group a shard: `shard`,
`key`, `kept`, `reason` (empty if it is kept), `duplicate_of` (what a duplicate repeats). A sample is kept when all
verdicts keep it; a verdict that is deleted no longer counts. The shards themselves are never changed. A verdict
of `dedup` holds only together with those that it considered (`staleness.py`).
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diptych.data.shards import ShardIndex, open_index
from diptych.errors import UserError
from diptych.files import check_folder, committed, sha256_of
from diptych.terminal import count_lines, counted, is_or_are, shown
from diptych_shards.select.select_folder import checked_name, select_folder

if TYPE_CHECKING:
    import pyarrow

MOST_REASON_CHARACTERS = 200

_FORMAT = "diptych-verdict-1"


class VerdictError(UserError):
    """A verdict is missing, damaged, stale, or of other shards."""


@dataclass(frozen=True)
class Verdict:
    """A verdict on disk."""

    name: str
    path: Path

    @cached_property
    def facts(self) -> dict[str, Any]:
        """Which command wrote it, and with which options."""
        facts: dict[str, Any] = json.loads((self._file.schema_arrow.metadata or {})[b"diptych"])
        return facts

    @property
    def chooses(self) -> bool:
        """Whether it keeps one of several, chosen among the samples that others keep."""
        return bool(self.facts["command"] == "dedup")

    @property
    def considered(self) -> dict[str, str]:
        """The verdicts that left the samples that it chose among: sha256 by name; empty for a filter."""
        considered: dict[str, str] = self.facts.get("considered", {})
        return considered

    @cached_property
    def sha256(self) -> str:
        return sha256_of(self.path)

    def is_of(self, index: ShardIndex) -> bool:
        """Whether the shards are still those that it judged; for a filter, also the parquet files next to them."""
        from diptych_shards.metadata import identity_of_tables

        if self._file.num_row_groups != len(index.shards) or self.facts["shards"] != index.fingerprint:
            return False
        return "tables" not in self.facts or self.facts["tables"] == identity_of_tables(index)

    @cached_property
    def counts(self) -> Counter[str]:
        """Samples by reason; the reason of kept ones is empty."""
        total: Counter[str] = Counter()
        for number in range(self._file.num_row_groups):
            counted = self._file.read_row_group(number, columns=["reason"])["reason"].value_counts()
            total.update({each["values"]: each["counts"] for each in counted.to_pylist()})
        return total

    def rows(self, shard_number: int) -> pyarrow.Table:
        """The rows of one shard."""
        return self._file.read_row_group(shard_number)

    def kept(self, shard_number: int) -> np.ndarray:
        """Whether each sample of one shard is kept, as bool."""
        column = self._file.read_row_group(shard_number, columns=["kept"])["kept"]
        kept: np.ndarray = column.to_numpy().astype(bool)
        return kept

    @cached_property
    def _file(self) -> pyarrow.parquet.ParquetFile:
        import pyarrow.parquet

        return pyarrow.parquet.ParquetFile(self.path)


class VerdictWriter:
    """Writes one verdict, shard by shard; the file appears, whole, when the block is left without an exception."""

    def __init__(self, shards: Path, name: str, index: ShardIndex, facts: dict[str, Any]):
        """facts: which command writes it, and with which options."""
        self._path = select_folder(shards) / f"{checked_name(name)}.parquet"
        self._index = index
        self._next_shard = 0
        self._facts = {"format": _FORMAT, "shards": index.fingerprint, **facts}

    def add(self, reasons: Sequence[str], duplicates: Sequence[str | None]) -> None:
        """Add the next shard: why each sample is left out (empty if it is kept), and what it duplicates."""
        import pyarrow

        number, self._next_shard = self._next_shard, self._next_shard + 1
        keys = self._index.keys(number)
        names = pyarrow.DictionaryArray.from_arrays(
            pyarrow.array(np.zeros(len(keys), np.int32)), pyarrow.array([shown(self._index.shards[number].name)])
        )
        kept = [reason == "" for reason in reasons]
        columns = [
            names.cast(pyarrow.string()),
            pyarrow.array(keys, pyarrow.string()),
            pyarrow.array(kept, pyarrow.bool_()),
            pyarrow.array(reasons, pyarrow.string()),
            pyarrow.array(duplicates, pyarrow.string()),
        ]
        table = pyarrow.Table.from_arrays(columns, schema=self._schema)
        self._writer.write_table(table, row_group_size=max(len(keys), 1))

    def __enter__(self) -> VerdictWriter:
        import pyarrow.parquet

        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._schema = _schema().with_metadata({"diptych": json.dumps(self._facts)})
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(open(stack.enter_context(committed(self._path)), "wb"))
            # Also closed after an error: a writer that is not closed complains when it is collected.
            self._writer = stack.enter_context(pyarrow.parquet.ParquetWriter(file, self._schema))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stack.__exit__(*exception)


def open_shards(path: Path) -> ShardIndex:
    """Open the index of a folder of shards, where verdicts can be written.

    Raises:
        UserError: it is not a folder.
        ShardError: the shards are missing or damaged.
    """
    check_folder(path, "shards, which also contains their verdicts")
    return open_index(path)


def read_verdicts(shards: Path, index: ShardIndex, names: Sequence[str] | None = None) -> list[Verdict]:
    """All verdicts in the order of their names, or those with these names.

    Raises:
        VerdictError: there is none, or one is missing or damaged, or the shards changed after it was written.
    """
    folder = select_folder(shards)
    there = names_of_verdicts(shards)
    if missing := [name for name in names or () if name not in there]:
        raise VerdictError(f"no verdict {missing[0]!r} in {shown(folder)}; there are {', '.join(there) or 'none'}")
    if not there:
        raise VerdictError(f"{shown(shards)} has no verdict yet; `diptych-shards dedup` or `filter` writes one")
    verdicts = [read_verdict(shards, name) for name in (there if names is None else dict.fromkeys(names))]
    for verdict in verdicts:
        if not verdict.is_of(index):
            raise outdated(verdict)
    return verdicts


def names_of_verdicts(shards: Path) -> list[str]:
    return sorted(path.name.removesuffix(".parquet") for path in select_folder(shards).glob("*.parquet"))


def read_verdict(shards: Path, name: str) -> Verdict:
    """Read a verdict that exists, perhaps of shards that have changed since.

    Raises:
        VerdictError: it is damaged.
    """
    import pyarrow

    verdict = Verdict(name, select_folder(shards) / f"{name}.parquet")
    try:
        is_known = verdict.facts["format"] == _FORMAT
    except (pyarrow.ArrowInvalid, OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(verdict) from error
    if not is_known:
        raise _damaged(verdict)
    return verdict


def verdict_to_replace(shards: Path, name: str, command: str) -> Verdict | None:
    """The verdict of the same name that a new one replaces, if there is one that can be read.

    Raises:
        VerdictError: another command wrote it.
    """
    if checked_name(name) not in names_of_verdicts(shards):
        return None
    try:
        before = read_verdict(shards, name)
    except VerdictError:
        return None
    if before.facts["command"] != command:
        raise VerdictError(f"the verdict {name!r} is one of `{before.facts['command']}`: "
                          f"choose another --name, or delete {shown(before.path)}")  # fmt: skip
    return before


def outdated(verdict: Verdict) -> VerdictError:
    return VerdictError(f"the verdict {verdict.name!r} is of these shards as they were before they changed: "
                       f"write it again, or delete {shown(verdict.path)}")  # fmt: skip


def verdict_table(shards: Path, name: str, counts: Mapping[str, int], left_out_by_others: int = 0) -> str:
    """Describe a verdict: how many samples it keeps, and how many it leaves out for each reason.

    counts: samples by reason; empty for those that are kept, or left out by others.
    """
    total = sum(counts.values())
    kept = counts.get("", 0) - left_out_by_others
    where = f"{shown(select_folder(shards) / name)}.parquet"
    lines = [f"{name}: {kept:,} of {counted(total, 'sample')} {is_or_are(total)} kept: {where}"]
    reasons = sorted((item for item in counts.items() if item[0]), key=lambda item: (-item[1], item[0]))
    return "\n".join([*lines, *count_lines((shown(reason), number) for reason, number in reasons)])


def kept_by_all(verdicts: Sequence[Verdict], index: ShardIndex, shard_number: int) -> np.ndarray:
    """Whether all verdicts keep each sample of one shard, as bool."""
    kept = np.ones(index.shards[shard_number].samples, bool)
    for verdict in verdicts:
        kept &= verdict.kept(shard_number)
    return kept


def _damaged(verdict: Verdict) -> VerdictError:
    return VerdictError(f"the verdict {verdict.name!r} is damaged or something else: "
                       f"write it again, or delete {shown(verdict.path)}")  # fmt: skip


def _schema() -> pyarrow.Schema:
    import pyarrow

    text = pyarrow.string()
    return pyarrow.schema(
        [
            pyarrow.field("shard", text),
            pyarrow.field("key", text),
            pyarrow.field("kept", pyarrow.bool_()),
            pyarrow.field("reason", text),
            pyarrow.field("duplicate_of", text),
        ]
    )
