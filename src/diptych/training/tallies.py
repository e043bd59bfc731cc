"""Whole numbers of a step that are summed over ranks: stop requests, tokens, rejected samples, bytes read."""

from __future__ import annotations

from collections import Counter

from diptych.data.batch import Batch
from diptych.data.loader import REASONS
from diptych.data.shards import COUNTS
from diptych.training.engine import StepStats

STOP, TOKENS = "stop_requests", "tokens"
NAMES = (STOP, TOKENS, *REASONS, *COUNTS)


def tallies_of(batch: Batch, *, is_stop_requested: bool) -> tuple[int, ...]:
    """This rank's numbers, in the order of NAMES."""
    rejected = Counter(reject.reason for reject in batch.rejects)
    counts = rejected + batch.reads
    counts[STOP], counts[TOKENS] = is_stop_requested, int(batch.lengths.sum())
    return tuple(counts[name] for name in NAMES)


def tally(stats: StepStats, name: str) -> int:
    """The number of a step over all ranks."""
    return stats.tallies[NAMES.index(name)]
