"""Stop a run on a signal, after a time, or without its launcher: finish the step and save a checkpoint first."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from types import FrameType

from diptych.config.values import seconds_of

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
"""Launchers and schedulers send any of them, and a terminal's Ctrl-C the second."""
KILLED_LAUNCHER = "the death of its launcher"
IMPATIENCE_SECONDS = 1.0
"""A launcher repeats the terminal's Ctrl-C at once; a second one after this long comes from a person."""


@cache
def launchers() -> tuple[int, ...]:
    """The ids of the launcher's processes that started this one; none without a launcher.

    It must be called before the seconds in which a run starts: once such a process is dead, the system names another.
    """
    return _launchers_now()


class StopWaiting(BaseException):
    """A stop was asked for in a block that waits. No Exception, so that nobody who tries again catches it."""


class StopRequest:
    """Whether this rank was asked to stop; the ranks agree on it during a step, never inside a handler.

    stop_after: `machine.stop_after`.
    """

    def __init__(self, stop_after: str | None = None) -> None:
        self.reason = ""
        """What asked first, such as SIGTERM; empty if nothing did."""
        self.ends_a_wait = False
        """Whether a second Ctrl-C only ends a wait; otherwise it ends the process."""
        self._ends_a_wait_at_once = False
        self._signals = 0
        self._since = 0.0
        self._stop_after = stop_after
        left = float("inf") if stop_after is None else seconds_of(stop_after) - _running_seconds()
        self._deadline = time.monotonic() + left

    @property
    def times(self) -> int:
        """Number of requests; a signal soon after another counts as the same request."""
        is_late = time.monotonic() >= self._deadline
        if is_late:
            self.reason = self.reason or f"machine.stop_after={self._stop_after}"
        # A launcher ends its ranks; if it was killed, they would train on, and the same command could not.
        is_orphan = _launchers_now() != launchers()
        if is_orphan:
            self.reason = self.reason or KILLED_LAUNCHER
        return self._signals + is_late + is_orphan

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

    @contextmanager
    def ending_a_wait_at_once(self) -> Iterator[None]:
        """Raise StopWaiting from the block as soon as a stop is asked for, or if that was before."""
        self._ends_a_wait_at_once = True
        try:
            if self.requested:
                raise StopWaiting
            yield
        finally:
            self._ends_a_wait_at_once = False

    def ask(self, number: int, frame: FrameType | None) -> None:
        if self._signals and time.monotonic() - self._since <= IMPATIENCE_SECONDS:
            return
        if self._signals and number == signal.SIGINT and not self.ends_a_wait:
            raise KeyboardInterrupt
        self.reason = self.reason or signal.Signals(number).name
        self._since = time.monotonic()
        self._signals += 1
        if self._ends_a_wait_at_once:
            raise StopWaiting


@contextmanager
def stop_on_request(stop_after: str | None) -> Iterator[StopRequest]:
    request = StopRequest(stop_after)
    before = [signal.signal(number, request.ask) for number in SIGNALS]
    try:
        yield request
    finally:
        for number, handler in zip(SIGNALS, before, strict=True):
            signal.signal(number, handler)


def _running_seconds() -> float:
    """How long this process has been running, or torchrun if it started the process, which restarts it after an error.

    0 where the system does not tell.
    """
    process = launchers()[0] if _has_torchrun() else os.getpid()
    with suppress(OSError):
        return time.clock_gettime(time.CLOCK_BOOTTIME) - int(_status_of(process)[19]) / os.sysconf("SC_CLK_TCK")
    return 0.0


def _launchers_now() -> tuple[int, ...]:
    parent = os.getppid()
    if _has_torchrun():
        return (parent,)
    if "CROSS_RANK" in os.environ:  # DeepSpeed's process of this machine, and the command that started that one
        with suppress(OSError):
            return parent, int(_status_of(parent)[1])
        return (parent,)
    return ()


def _status_of(process: int) -> list[str]:
    """The words after the name in `/proc/PID/stat`: the state, the parent's id and so on."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()


def _has_torchrun() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ
