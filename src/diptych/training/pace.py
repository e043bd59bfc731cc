"""Where the time of a run goes."""

from __future__ import annotations

import time
from collections.abc import Iterator

from diptych.data.batch import Batch


class Pace:
    """Samples per second and waiting for data, between two looks.

    seconds_before: training time of earlier starts of the run.
    """

    def __init__(self, samples_seen: int, seconds_before: float):
        self._seconds_before = seconds_before
        self._start = self._last = time.monotonic()
        self._last_samples = samples_seen
        self._waited = 0.0

    @property
    def seconds(self) -> float:
        """Training time so far, over all starts of the run."""
        return self._seconds_before + time.monotonic() - self._start

    def timed(self, loader: Iterator[Batch]) -> Iterator[Batch]:
        """The loader's batches; what it makes us wait is counted."""
        while True:
            began = time.monotonic()
            batch = next(loader, None)
            self._waited += time.monotonic() - began
            if batch is None:
                return
            yield batch

    def measure(self, samples_seen: int) -> tuple[float, float]:
        """Samples per second and the share of time spent waiting for data, since the last call."""
        now = time.monotonic()
        elapsed = max(now - self._last, 1e-9)
        result = (samples_seen - self._last_samples) / elapsed, self._waited / elapsed
        self._last, self._last_samples, self._waited = now, samples_seen, 0.0
        return result
