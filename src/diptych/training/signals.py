"""Stop a run on SIGTERM or Ctrl-C: the step in progress is finished and a checkpoint saved first."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

IMPATIENCE_SECONDS = 1.0
"""A launcher repeats the terminal's Ctrl-C at once; a second one after this long comes from a person."""


class StopRequest:
    """Whether this rank was asked to stop; the ranks agree on it during a step, never inside a handler."""

    def __init__(self) -> None:
        self.times = 0
        """Number of requests; a signal soon after another counts as the same request."""
        self.ends_a_wait = False
        """Whether a second Ctrl-C only ends a wait; otherwise it ends the process."""
        self._since = 0.0

    @property
    def requested(self) -> bool:
        return self.times > 0

    @contextmanager
    def ending_a_wait(self) -> Iterator[None]:
        """During the block Ctrl-C does not end the process, since the block checks `times` itself."""
        self.ends_a_wait = True
        try:
            yield
        finally:
            self.ends_a_wait = False

    def ask(self, number: int, frame: FrameType | None) -> None:
        if self.requested and time.monotonic() - self._since <= IMPATIENCE_SECONDS:
            return
        if self.requested and number == signal.SIGINT and not self.ends_a_wait:
            raise KeyboardInterrupt
        self._since = time.monotonic()
        self.times += 1


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    request = StopRequest()
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, request.ask) for number in numbers]
    try:
        yield request
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
