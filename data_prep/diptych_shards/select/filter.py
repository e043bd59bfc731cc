"""Leave out samples for which an expression is not true.

Each shard is judged by itself, in whichever process the engine chooses. The results are in `NAME.parts/` until the
verdict is written, so that a killed command resumes where it stopped.
"""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as compute

from diptych.data.shards import ShardIndex
from diptych.errors import UserError
from diptych.terminal import shown
from diptych_shards.metadata import columns_of_shard, identity_of_tables, table_identity
from diptych_shards.run.engine import Engine
from diptych_shards.run.progress import Progress
from diptych_shards.select.expression import Expression, parse_conditions
from diptych_shards.select.select_folder import alone_in, read_rows, select_folder, write_rows
from diptych_shards.select.verdicts import MOST_REASON_CHARACTERS, VerdictWriter, verdict_to_replace

_FORMAT = "diptych-reasons-2"
_NOTS = re.compile(r"(?:not\b\s*)+", re.IGNORECASE)


def filter_samples(shards: Path, index: ShardIndex, where: str, name: str, engine: Engine) -> Counter[str]:
    """Write the verdict `name` next to the shards; return the samples by reason (the empty one: kept).

    A sample's reason is the first of the conditions between `and`s that does not hold: `not width >= 256`, or
    `unknown width >= 256` where the answer is unknown.

    Raises:
        UserError: the expression does not fit these samples.
        ShardError: a shard is damaged.
    """
    verdict_to_replace(shards, name, "filter")
    conditions = parse_conditions(where)
    counts: Counter[str] = Counter()
    tables = identity_of_tables(index)
    facts = {"command": "filter", "options": {"where": where}, "meanings": {}, "tables": tables}
    judge = _Judge(index, where, conditions, select_folder(shards) / f"{name}.parts")
    with alone_in(select_folder(shards)):
        _judge_all(judge, engine)
        with VerdictWriter(shards, name, index, facts) as verdict:
            for number in range(len(index.shards)):
                reasons = judge.reasons(number)
                if reasons is None:
                    raise UserError(f"{shown(judge.parts)} changed during the run; start the same command again")
                verdict.add(reasons, [None] * len(reasons))
                counts.update(reasons)
        shutil.rmtree(judge.parts, ignore_errors=True)
    return counts


def _judge_all(judge: _Judge, engine: Engine) -> None:
    shards = judge.index.shards
    pending = [number for number in range(len(shards)) if judge.reasons(number) is None]
    progress = Progress(len(judge.index), "sample", apart="left out")
    try:
        progress.add(len(judge.index) - sum(shards[number].samples for number in pending))
        for number, left_out in zip(pending, engine.map(judge, pending, lost=judge.lost), strict=True):
            progress.add(shards[number].samples, apart=left_out)
            progress.shard_is_done(shown(shards[number].name))
    finally:
        progress.close()


@dataclass(frozen=True)
class _Judge:
    """Judges the samples of one shard after another."""

    index: ShardIndex
    where: str
    conditions: Sequence[Expression]
    parts: Path

    def __call__(self, number: int) -> int:
        """Write the reasons of one shard; return how many samples are left out."""
        of = self._of(number)
        names = list(dict.fromkeys(name for condition in self.conditions for name in condition.columns))
        columns = columns_of_shard(self.index, number, names)
        reasons = _reasons(self.conditions, columns, self.index.shards[number].samples)
        write_rows(self._path(number), of, json.dumps(reasons).encode())
        return sum(map(bool, reasons))

    def reasons(self, number: int) -> list[str] | None:
        """The reason of each sample; None if the shard is not judged yet."""
        body = read_rows(self._path(number), self._of(number))
        return None if body is None else json.loads(body)

    def lost(self, number: int) -> int:
        raise UserError(f"{shown(self.index.shards[number].path)}: the process that read it died, twice; "
                          f"see whether memory runs out")  # fmt: skip

    def _path(self, number: int) -> Path:
        return self.parts / f"{self.index.shards[number].name}.reasons"

    def _of(self, number: int) -> dict[str, Any]:
        return {
            "format": _FORMAT,
            "where": self.where,
            "shard": self.index.shards[number].sha256,
            "table": table_identity(self.index, number),
        }


def _in_words(condition: Expression) -> tuple[str, str]:
    """The condition as the user wrote it, and its opposite, without a double `not`."""
    words = " ".join(condition.source.split())[:MOST_REASON_CHARACTERS]
    nots = _NOTS.match(words)
    if condition.is_or or condition.is_and:
        opposite = f"not ({words})"
    elif nots and len(nots[0].lower().split("not")) % 2 == 0:  # an odd number of them
        opposite = words[nots.end() :]
    else:
        opposite = f"not {words[nots.end() :] if nots else words}"
    return words, opposite


def _reasons(conditions: Sequence[Expression], columns: Mapping[str, Any], num_rows: int) -> list[str]:
    reasons = np.full(num_rows, "", dtype=object)
    for condition in conditions:
        found = condition.truths({name: columns[name] for name in condition.columns}, num_rows)
        holds, fails = _in_words(condition)
        is_true = compute.fill_null(found, False).to_numpy(zero_copy_only=False)
        is_unknown = compute.is_null(found).to_numpy(zero_copy_only=False)
        is_open = reasons == ""
        reasons[is_open & ~is_true & ~is_unknown] = fails
        reasons[is_open & is_unknown] = f"unknown {holds}"
    texts: list[str] = reasons.tolist()
    return texts
