"""Compute how often a run should be saved, and what saves and failures cost."""

from __future__ import annotations

import math
from dataclasses import dataclass

GPU_HOURS_OF_FAILURE = 54 * 24 * 16_384 / 419
"""GPU-hours between two failures: Llama 3 405B had 419 unexpected interruptions in 54 days on 16,384 H100 (arXiv
2407.21783, section 3.3.4), which is 50,700."""
RESTART_SECONDS = 300.0
"""From a failure until training goes on: noticing it, starting the ranks and reading the checkpoint."""
SAVE_SECONDS_OF_GB = 2.0
"""How long saving a GB of state stalls training: copying from the GPU, writing, hashing and syncing, one after another
on rank 0 (measured: 5.1 GB in 10 s)."""


@dataclass(frozen=True)
class Saving:
    """How often to save, for the least time lost."""

    bytes_of_checkpoint: int
    stall_seconds: float
    hours_between_failures: float
    interval_seconds: float
    lost_fraction: float
    """Share of the time that saves, restarts and repeated work take."""


def saving(num_parameters: int, bytes_of_parameter: int, num_gpus: int) -> Saving:
    """The interval between checkpoints after Young: the square root of 2 x stall x time between failures.

    Young, A first order approximation to the optimum checkpoint interval (1974); Daly (2006), equation 13, gives the
    time lost: stall / interval for saves, and for each failure half an interval of work and the restart. Failures of
    single GPUs add up, so that n GPUs fail n times as often.

    bytes_of_parameter: that a checkpoint contains for each parameter.
    """
    num_bytes = num_parameters * bytes_of_parameter
    stall = num_bytes / 1e9 * SAVE_SECONDS_OF_GB
    between_failures = 3600 * GPU_HOURS_OF_FAILURE / num_gpus
    interval = young(stall, between_failures)
    lost = stall / interval + (interval / 2 + RESTART_SECONDS) / between_failures
    return Saving(num_bytes, stall, between_failures / 3600, interval, min(lost, 1.0))


def young(stall_seconds: float, seconds_between_failures: float) -> float:
    """The interval between checkpoints with which least time is lost."""
    return math.sqrt(2 * stall_seconds * seconds_between_failures)
