"""Whole numbers of a step that are summed over ranks: tokens, rejects, bytes read, rows of each source and more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from diptych.data.batch import Batch
from diptych.data.decoder import REASONS
from diptych.data.mixture import Mixture
from diptych.data.shards import COUNTS
from diptych.training.engine import StepStats

STOP, TOKENS = "stop_requests", "tokens"
NAMES = (STOP, TOKENS, *REASONS, *COUNTS)


def tallies_of(batch: Batch, mixture: Mixture, *, is_stop_requested: bool) -> tuple[int, ...]:
    """This rank's numbers: those of NAMES, then the rows of each source."""
    counts = Counter(reject.reason for reject in batch.rejects) + batch.reads
    counts[STOP], counts[TOKENS] = is_stop_requested, int(batch.lengths.sum())
    return (*(counts[name] for name in NAMES), *mixture.count(batch.samples).tolist())


def tally(stats: StepStats, name: str) -> int:
    """The number of a step over all ranks."""
    return stats.tallies[NAMES.index(name)]


def source_shares(steps: Sequence[StepStats]) -> list[float]:
    """The share of all rows of some steps that each source has given."""
    rows = np.array([stats.tallies[len(NAMES) :] for stats in steps]).sum(axis=0)
    shares: list[float] = (rows / rows.sum()).tolist()
    return shares
