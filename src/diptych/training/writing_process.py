"""Start and end the process that runs `writing_service` for a rank, and exchange messages with it."""

from __future__ import annotations

import math
import os
import signal
import socket
import subprocess
import sys
from multiprocessing.connection import Connection
from typing import Any

import psutil

KILL_SECONDS = 5
"""How long a killed process may take to end; one that waits for a disk which does not answer may never end."""


class WritingProcess:
    """The process that writes a rank's share of checkpoints, and the connection to it.

    memory: the open file of the memory that both processes see.
    """

    def __init__(self, memory: int):
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-c", "from diptych.training.writing_service import main; main()"]
        with theirs:
            self._process = subprocess.Popen(
                [*command, str(theirs.fileno()), str(memory)],
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},  # the same code as in this process
                pass_fds=(theirs.fileno(), memory),
                start_new_session=True,  # so that the terminal's Ctrl-C reaches only the training process
            )
        self._connection = Connection(ours.detach())
        self._has_plan = False
        self.is_lost = False

    def send(self, order: Any, *, once: bool = False) -> None:
        """Send an order; with `once` (the plan, which a process needs first) only if none was sent so before."""
        if once:
            if self._has_plan:
                return
            self._has_plan = True
        try:
            self._connection.send(order)
        except OSError:
            self.is_lost = True

    def said(self) -> list[Any]:
        """What the process has sent since the last call."""
        said: list[Any] = []
        try:
            while self._connection.poll():
                said.append(self._connection.recv())
        except (EOFError, OSError):
            self.is_lost = True
        return said

    def work_seconds(self) -> float:
        """The processor time that the process has used; it stands still while its disk does not answer."""
        try:
            times = psutil.Process(self._process.pid).cpu_times()
        except psutil.Error:  # it has ended
            return math.nan
        return float(times.user + times.system)

    def close(self) -> str:
        """End the process; how it ended."""
        self._connection.close()
        try:
            status = self._process.wait(1)
        except subprocess.TimeoutExpired:
            self._process.kill()
            try:
                status = self._process.wait(KILL_SECONDS)
            except subprocess.TimeoutExpired:
                return "it does not end"
        return signal.Signals(-status).name if status < 0 else f"exit status {status}"
