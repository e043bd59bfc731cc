"""Compute how often a run should be saved, and what saves and failures cost."""

from __future__ import annotations

import math
from dataclasses import dataclass

GPU_HOURS_OF_FAILURE = 54 * 24 * 16_384 / 419
"""GPU-hours between two failures: Llama 3 405B had 419 unexpected interruptions in 54 days on 16,384 H100 (arXiv
2407.21783, section 3.3.4), which is 50,700."""
RESTART_SECONDS = 300.0
"""From a failure until training goes on: noticing it, starting the ranks and reading the checkpoint."""
COPY_BYTES_PER_SECOND = 3e9
"""From a GPU to host memory; training stalls meanwhile."""
WRITE_BYTES_PER_SECOND = 0.5e9
"""For a process that writes, hashes and syncs while training goes on (measured: 5.1 GB in 10 s)."""


@dataclass(frozen=True)
class Saving:
    """How often to save, for the least time lost."""

    bytes_of_checkpoint: int
    stall_seconds: float
    """How long a save stalls training."""
    write_seconds: float
    """How long it takes until the checkpoint is complete."""
    hours_between_failures: float
    interval_seconds: float
    lost_fraction: float
    """Share of the time that saves, restarts and repeated work take."""


def saving(bytes_of_weights: int, bytes_divided: int, num_gpus: int) -> Saving:
    """The best interval between checkpoints, and the time lost with it.

    Failures of single GPUs add up, so that n GPUs fail n times as often. Each failure costs half an interval of work,
    the checkpoint that was being written, and the restart; saves cost stall / interval (Daly, A higher order estimate
    of the optimum checkpoint interval, 2006, section 2). Each rank saves its share of moments and averages, and rank 0
    also the weights, so that its share is the largest.

    bytes_divided: of what the ranks divide among them.
    """
    of_first_rank = bytes_of_weights + bytes_divided / num_gpus
    stall, write = of_first_rank / COPY_BYTES_PER_SECOND, of_first_rank / WRITE_BYTES_PER_SECOND
    between_failures = 3600 * GPU_HOURS_OF_FAILURE / num_gpus
    interval = max(young(stall, between_failures), write)
    lost = stall / interval + (interval / 2 + write + RESTART_SECONDS) / between_failures
    return Saving(bytes_of_weights + bytes_divided, stall, write, between_failures / 3600, interval, min(lost, 0.99))


def young(stall_seconds: float, seconds_between_failures: float) -> float:
    """The interval between checkpoints with which least time is lost: the square root of 2 x stall x time between
    failures (Young, A first order approximation to the optimum checkpoint interval, 1974)."""
    return math.sqrt(2 * stall_seconds * seconds_between_failures)
