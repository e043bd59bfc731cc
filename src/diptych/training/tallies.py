"""Whole numbers of a step that are summed over ranks: tokens, rejects, bytes read, rows of each source and more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from diptych.data.batch import Batch
from diptych.data.decoder import REASONS
from diptych.data.mixture import Mixture
from diptych.data.shards import COUNTS
from diptych.training.step_stats import StepStats

STOP, TOKENS = "stop_requests", "tokens"
SAVE_STATES = WRITTEN, FAILING, LOST, COMMITTED = (
    "shares_written",
    "shares_failing",
    "shares_lost",
    "checkpoints_committed",
)
"""Of the save in flight: ranks whose share is written, cannot be written, was lost, is part of a checkpoint."""
NAMES = (STOP, TOKENS, *SAVE_STATES, *REASONS, *COUNTS)


def tallies_of(
    batch: Batch, mixture: Mixture, *, is_stop_requested: bool, save_states: Mapping[str, int]
) -> tuple[int, ...]:
    """This rank's numbers: those of NAMES, then the rows of each source.

    save_states: 1 for those of SAVE_STATES that this rank's save in flight has reached.
    """
    counts = Counter(reject.reason for reject in batch.rejects) + batch.reads
    counts.update(save_states)
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
