"""Show the progress of a run: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable

from tqdm import tqdm

LINE_EVERY_SECONDS = 5.0


def say(line: str) -> None:
    """Print a line for the user, above the progress bar if there is one."""
    if sys.stderr.isatty():
        tqdm.write(line, file=sys.stderr)
    else:
        print(line, flush=True)


class Console:
    """The progress of a run on the console; silent on all ranks but 0.

    work_until: number of samples → the work of the run up to there, in any unit; default: each sample takes the same.
    """

    def __init__(
        self, *, total_samples: int, samples_seen: int, shown: bool, work_until: Callable[[int], float] = float
    ):
        self._shown = shown
        self._total = total_samples
        self._work_until = work_until
        self._start: tuple[int, float] | None = None
        """Samples and time after the first step, which is slower than all others and so not counted."""
        self._last_line = -math.inf
        self._numbers = ""
        self._bar: tqdm | None = None
        if shown and sys.stderr.isatty():
            # In a container or a terminal recorder the size may be 0 columns and rows; tqdm would then show nothing.
            knows_size = os.get_terminal_size(sys.stderr.fileno()).columns > 0
            self._bar = tqdm(
                total=total_samples,
                initial=samples_seen,
                unit=" samples",
                unit_scale=True,
                dynamic_ncols=knows_size,
                ncols=None if knows_size else 80,
                nrows=None if knows_size else 24,
                miniters=1,  # otherwise tqdm adapts to quick steps and stops updating during slow ones
                bar_format="{percentage:3.0f}% {bar} {n_fmt}/{total_fmt} {rate_fmt} {desc}{postfix}",
            )

    def say(self, line: str) -> None:
        """Print a line unless it is empty."""
        if self._shown and line:
            say(line)

    def show(self, loss: float, samples_per_second: float, data_wait_fraction: float) -> None:
        """Show the numbers of a logged step next to the progress, until the next ones."""
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {loss:.3f} data-wait {data_wait_fraction:.0%}", refresh=False)
        self._numbers = f"loss {loss:.3f}  {samples_per_second:.0f} samples/s  data-wait {data_wait_fraction:.0%}  "

    def move(self, samples_seen: int) -> None:
        """Show the progress after a step, logged or not; cheap."""
        if self._start is None:
            self._start = samples_seen, time.monotonic()
        if self._bar is not None:
            self._bar.set_description_str(f"ETA {self._remaining(samples_seen)}", refresh=False)
            self._bar.update(samples_seen - self._bar.n)
        elif self._shown and (samples_seen >= self._total or time.monotonic() - self._last_line >= LINE_EVERY_SECONDS):
            self._last_line = time.monotonic()
            print(
                f"{samples_seen / self._total:4.0%}  {samples_seen}/{self._total} samples  {self._numbers}"
                f"ETA {self._remaining(samples_seen)}",
                flush=True,
            )

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def _remaining(self, samples_seen: int) -> str:
        if self._start is None or samples_seen == self._start[0] < self._total:
            return "?"
        first, since = self._start
        before, now, whole = (self._work_until(samples) for samples in (first, samples_seen, self._total))
        done = now - before
        seconds = (time.monotonic() - since) / done * (whole - now) if done else 0.0
        return str(tqdm.format_interval(seconds))
