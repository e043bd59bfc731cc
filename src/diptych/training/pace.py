"""Measure the speed of a run and how long it waits for data."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from statistics import quantiles

from diptych.data.batch import Batch
from diptych.training.step_stats import StepStats
from diptych.training.tallies import tally

WINDOW = 200
"""Number of newest steps over which median and 95th percentile are computed."""


class Pace:
    """Measures samples per second, durations of steps, and waiting for data between two calls of `measure`.

    seconds_before: training time of earlier starts of the run.
    """

    def __init__(self, global_batch_size: int, seconds_before: float):
        self._batch = global_batch_size
        self._seconds_before = seconds_before
        self._start = self._last_look = self._last_step = time.monotonic()
        self._durations: deque[float] = deque(maxlen=WINDOW)
        self.waited_seconds = 0.0
        """How long the newest batch was waited for."""

    @property
    def seconds(self) -> float:
        """Training time so far, over all starts of the run."""
        return self._seconds_before + time.monotonic() - self._start

    def timed(self, loader: Iterator[Batch]) -> Iterator[Batch]:
        """Yield the loader's batches, and measure how long each is waited for."""
        while True:
            began = time.monotonic()
            batch = next(loader, None)
            self.waited_seconds = time.monotonic() - began
            if batch is None:
                return
            yield batch

    def step_is_done(self) -> None:
        """Record a step, which started when the step before it was done or the last pause was over."""
        now = time.monotonic()
        self._durations.append(now - self._last_step)
        self._last_step = now

    def pause_is_over(self) -> None:
        """Exclude the time since the last step, such as that of a save, from the next step."""
        self._last_step = time.monotonic()

    def measure(self, steps: Sequence[StepStats]) -> dict[str, float]:
        """The measured values by their names in the record.

        steps: the steps since the last call, at least one.
        """
        now = time.monotonic()
        elapsed = max(now - self._last_look, 1e-9)
        self._last_look = now
        by_rank = [sum(waits) for waits in zip(*(step.waits for step in steps), strict=True)]
        cuts = quantiles([*self._durations] * 2, n=20)
        return {
            # Samples that a roll-back passed over do not count.
            "samples_per_second": round(len(steps) * self._batch / elapsed, 2),
            "bytes_read_per_second": round(sum(tally(step, "bytes_read") for step in steps) / elapsed),
            "step_seconds_p50": round(cuts[9], 5),
            "step_seconds_p95": round(cuts[18], 5),
            **{f"{phase}_seconds": _mean([step.seconds[phase] for step in steps]) for phase in steps[-1].seconds},
            # All ranks wait for the one that waits longest. Before a save several steps in flight are read at once;
            # some of them may have waited before the last call, hence the limit of 1.
            "data_wait_fraction": round(min(1.0, sum(max(step.waits) for step in steps) / elapsed), 4),
            "data_wait_fraction_of_mean_rank": round(min(1.0, sum(by_rank) / len(by_rank) / elapsed), 4),
            "data_wait_slowest_rank": max(range(len(by_rank)), key=by_rank.__getitem__),
        }


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), 5)
