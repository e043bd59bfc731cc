"""Measure a command: processor seconds of all its processes, wall-clock seconds, peak memory."""

from __future__ import annotations

import ctypes
import os
import resource
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SECONDS_BETWEEN_SAMPLES = 0.2
SAMPLE_COSTS = 50
"""A pause is at least so many times as long as the sample before it: of gigabytes a sample takes 40 ms, and slows the
process whose pages it walks through."""
MOST_SECONDS = 400.0
_PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Cost:
    cpu_seconds: float
    wall_seconds: float
    peak_megabytes: float
    """The highest sum of the proportional set sizes of all processes."""


class Adoption:
    """Adopts orphans of measured commands as children of this process, so that their times are counted too.

    No other child of this process may end during a measurement.
    """

    def __init__(self) -> None:
        if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "this benchmark needs Linux: no child subreaper")


def measure(
    command: Sequence[str], environment: Mapping[str, str], log: Path, *, most_seconds: float = MOST_SECONDS
) -> Cost:
    """Run the command to its end.

    Raises:
        RuntimeError: if it fails or takes too long; with the end of its output.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.monotonic()
    with open(log, "wb") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    watcher = _MemoryWatcher(process.pid)
    try:
        status = process.wait(most_seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        status = process.wait()
    wall_seconds = time.monotonic() - start
    peak = watcher.stop()
    _reap(process.pid)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if status != 0:
        raise RuntimeError(f"{command[0]} ended with {status}:\n{log.read_text(errors='replace')[-2000:]}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(cpu, wall_seconds, peak / 1e6)


class _MemoryWatcher:
    """Samples the memory of a session's processes in a thread."""

    def __init__(self, session: int):
        self._session = session
        self._peak = 0
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        self._is_over.set()
        self._thread.join()
        return self._peak

    def _watch(self) -> None:
        pause = SECONDS_BETWEEN_SAMPLES
        while not self._is_over.wait(pause):
            began = time.thread_time()
            self._peak = max(self._peak, sum(map(_proportional_bytes, _members(self._session))))
            pause = max(SECONDS_BETWEEN_SAMPLES, SAMPLE_COSTS * (time.thread_time() - began))


def _members(session: int) -> list[int]:
    """The processes of a session, including those that have ended and wait to be reaped."""
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal():
            try:
                if os.getsid(int(entry.name)) == session:
                    found.append(int(entry.name))
            except ProcessLookupError:
                pass
    return found


def _proportional_bytes(process: int) -> int:
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except (OSError, UnicodeDecodeError):  # it has just ended
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def _reap(session: int) -> None:
    """Wait until no process of the session is left, since a command may end before its last process."""
    deadline = time.monotonic() + 10
    while members := _members(session):
        for member in members:
            try:
                os.waitpid(member, os.WNOHANG)
            except ChildProcessError:
                pass  # its own parent is still there to do it
        if time.monotonic() > deadline:
            os.killpg(session, 9)
        time.sleep(0.05)
