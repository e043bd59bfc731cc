"""What a training step did."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class StepStats:
    """What one step did; the same on all ranks except for `seconds`."""

    samples_seen: int
    """Samples of the run after this step."""
    loss: float
    learning_rate: float
    logit_scale: float
    """The factor on the cosines (the exponential of the parameter), before this step's update; NaN without cosines."""
    gradient_norm: float
    """The norm over the whole model, before clipping."""
    tower_gradient_norms: dict[str, float]
    """The norm over each tower, before clipping."""
    update_ratios: dict[str, float]
    """How much the step changed each tower: |new - old| / |old| of its weights; empty unless requested."""
    is_skipped: bool
    """Whether loss or gradient were not finite on some rank, so that no rank changed weights or moments."""
    bad_ranks: tuple[int, ...]
    """The ranks whose own pairs gave embeddings that are not finite; with a single bad one, every rank's loss is."""
    similarities: dict[str, float]
    """The fields of `BatchStatistics`, over the global batch; with a token head also its loss, `token_loss`."""
    tallies: tuple[int, ...]
    """For each number that the ranks passed in, its sum over ranks."""
    waits: tuple[float, ...]
    """Seconds that each rank waited for this batch."""
    seconds: dict[str, float] = field(compare=False)
    """Seconds on this rank's device by phase: forward (with the loss), backward, update."""


@dataclass(frozen=True)
class StepInFlight:
    """A step that the device may still be working on."""

    read: Callable[[], StepStats]
    """Wait until the step is done and return what it did."""
