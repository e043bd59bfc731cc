"""Draw some samples of each verdict and each reason: at random, but the same ones every time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow

from diptych.data.shards import ShardIndex
from diptych_shards.report.tally import Smallest, shuffled_places
from diptych_shards.select.verdicts import Verdict


@dataclass(frozen=True)
class Drawn:
    """One sample, and what it duplicates, if it is a duplicate."""

    shard: int
    row: int
    duplicate_of: str | None


@dataclass
class JudgedSamples:
    """What one verdict says of all samples."""

    verdict: Verdict
    kept: Smallest[Drawn]
    dropped: dict[str, Smallest[Drawn]] = field(default_factory=dict)
    """By reason."""
    alone: int = 0
    """How many are left out by this verdict and no other."""
    left_out_by_others: int = 0
    """How many it did not judge, since verdicts that it considered leave them out."""


@dataclass
class Judged:
    """What all verdicts say together."""

    total: int
    kept: int
    verdicts: list[JudgedSamples]


def draw(index: ShardIndex, verdicts: Sequence[Verdict], size: int, seed: int) -> Judged:
    """Draw examples, and count what the verdicts keep and leave out.

    size: how many examples of each reason, and of what is kept.
    """
    names = [verdict.name for verdict in verdicts]
    considered = [[names.index(name) for name in verdict.considered] for verdict in verdicts]
    judged = Judged(len(index), 0, [JudgedSamples(verdict, Smallest(size)) for verdict in verdicts])
    for number, shard in enumerate(index.shards):
        rows = np.arange(shard.samples)
        places = shuffled_places(seed, number, rows)
        tables = [verdict.rows(number) for verdict in verdicts]
        kept = np.stack([table["kept"].to_numpy().astype(bool) for table in tables])
        judged.kept += int(kept.all(axis=0).sum())
        for place, (table, of) in enumerate(zip(tables, judged.verdicts, strict=True)):
            others_keep = np.delete(kept, place, axis=0).all(axis=0)
            of.alone += int((~kept[place] & others_keep).sum())
            takes_part = np.logical_and.reduce(kept[considered[place]], axis=0)
            of.left_out_by_others += int((~takes_part).sum())
            _offer(of, number, table["reason"].to_numpy(), takes_part, table["duplicate_of"], places, size)
    return judged


def _offer(
    of: JudgedSamples,
    shard: int,
    reasons: np.ndarray,
    takes_part: np.ndarray,
    duplicates: pyarrow.ChunkedArray,
    places: np.ndarray,
    size: int,
) -> None:
    for reason in sorted(set(reasons[takes_part].tolist())):
        rows = np.flatnonzero((reasons == reason) & takes_part)
        examples = of.dropped.setdefault(reason, Smallest(size)) if reason else of.kept

        def drawn(position: int, rows: np.ndarray = rows) -> Drawn:
            row = int(rows[position])
            return Drawn(shard, row, duplicates[row].as_py())

        examples.offer(np.zeros(len(rows)), places[rows], drawn)
