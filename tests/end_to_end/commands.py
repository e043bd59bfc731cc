"""Real commands for tests to watch, signal and wait for."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 120
"""How long anything may take on a loaded machine before it counts as hung."""
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}


class Command:
    """A process that leads a session of its own; what it says goes to a file."""

    def __init__(self, pid: int, output: Path, poll: Callable[[], int | None]):
        self.pid = pid
        self._output = output
        self._poll = poll

    @property
    def said(self) -> str:
        return self._output.read_text(encoding="utf-8") if self._output.exists() else ""

    def wait(self) -> int:
        """Its exit status, negative for the signal that ended it."""
        self.wait_until(lambda: self._poll() is not None)
        status = self._poll()
        assert status is not None
        return status

    def wait_until(self, happened: Callable[[], Any]) -> None:
        """Return as soon as it happened or the command has ended."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not happened() and self._poll() is None:
            if time.monotonic() > deadline:
                family = self.family()
                self.kill()
                raise AssertionError(f"still running: {family}\nwhat it said:\n{self.said}")
            time.sleep(0.001)

    def family(self) -> list[psutil.Process]:
        """The process and all below it that are there now."""
        try:
            process = psutil.Process(self.pid)
            return [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def signal_group(self, number: int) -> None:
        """As a terminal does on Ctrl-C."""
        os.killpg(self.pid, number)

    def kill(self) -> None:
        """It and all below it, at once."""
        for process in self.family():
            try:
                process.kill()
            except psutil.NoSuchProcess:
                pass


class Warm:
    """Starts `diptych` commands in a tenth of a second each; see `warm.py`."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._server = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("warm.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | ENVIRONMENT,
        )
        self._started = 0

    def start(self, *words: object, environment: dict[str, str] | None = None) -> Command:
        self._started += 1
        output = self._folder / f"command_{self._started}"
        request = {
            "arguments": [str(word) for word in words],
            "environment": environment or {},
            "output": str(output),
        }
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        pid = int(self._server.stdout.readline())
        status = output.with_name(f"{output.name}.status")
        return Command(pid, output, lambda: int(status.read_text()) if status.exists() else None)

    def start_ranks(self, size: int, *words: object) -> list[Command]:
        """As a launcher would."""
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(size)}
        places = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]
        return [self.start(*words, environment=meeting | place) for place in places]

    def close(self) -> None:
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.close()
        self._server.stdout.close()
        self._server.wait()


def start(folder: Path, *words: object, environment: dict[str, str] | None = None) -> Command:
    """Any program, as a person would type it in the repository's root; its output in a new file of the folder."""
    programs = Path(sys.executable).parent
    output = folder / f"output_{len(list(folder.glob('output_*')))}"
    with output.open("w") as file:
        process = subprocess.Popen(
            [str(word) for word in words],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ
            | ENVIRONMENT
            | {"PATH": f"{programs}{os.pathsep}{os.environ.get('PATH', '')}"}
            | (environment or {}),
        )
    return Command(process.pid, output, process.poll)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def gone(processes: list[psutil.Process]) -> bool:
    """Whether all of them end within a few seconds."""
    _, alive = psutil.wait_procs(processes, timeout=10)
    return not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


SIGNALS = {"SIGTERM": signal.SIGTERM, "Ctrl-C": signal.SIGINT}
