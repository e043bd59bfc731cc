"""Start real commands, which tests watch, signal and wait for."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.warm import ADDRESS, ENVIRONMENT, ROOT, Warm, address

PATIENCE_SECONDS = 120
"""How long anything may take on a busy machine before it counts as hung."""


class Command:
    """A process with a session of its own, whose output goes to a file."""

    def __init__(self, process: Warm | subprocess.Popen[bytes], output: Path):
        self.pid = process.pid
        self._output = output
        self.poll = process.poll

    @property
    def said(self) -> str:
        return self._output.read_text(encoding="utf-8") if self._output.exists() else ""

    def wait(self) -> int:
        """Wait for the exit status, which is negative for the signal that ended the process."""
        self.wait_until(lambda: self.poll() is not None)
        status = self.poll()
        assert status is not None
        return status

    def wait_until(self, happened: Callable[[], Any]) -> None:
        """Wait until something has happened or the command has ended."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not happened() and self.poll() is None:
            if time.monotonic() > deadline:
                family = self.family()
                self.kill()
                raise AssertionError(f"still running: {family}\nwhat it said:\n{self.said}")
            time.sleep(0.003)

    def family(self) -> list[psutil.Process]:
        """The process and all its living descendants."""
        try:
            process = psutil.Process(self.pid)
            return [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def workers(self) -> list[psutil.Process]:
        """The living processes that `multiprocessing` has spawned for it."""
        found = []
        for process in self.family():
            with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
                if any("spawn_main" in word for word in process.cmdline()):
                    found.append(process)
        return found

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def signal_group(self, number: int) -> None:
        """Send a signal to the process group, as a terminal does on Ctrl-C."""
        os.killpg(self.pid, number)

    def kill(self) -> None:
        """Kill the process and all its descendants at once."""
        for process in self.family():
            try:
                process.kill()
            except psutil.NoSuchProcess:
                pass


class WarmCommands:
    """Starts `diptych` commands in a tenth of a second each; see `warm.py`."""

    def __init__(self, folder: Path):
        self._folder = folder

    def start(
        self,
        *words: object,
        program: str = "diptych",
        environment: dict[str, str] | None = None,
        errors: int | None = None,
    ) -> Command:
        """errors: an open file for the standard error, which else goes where the output does."""
        output = self._folder / f"command_{len(list(self._folder.iterdir()))}"
        with output.open("wb") as file, open(os.devnull, "rb") as nothing:
            process = Warm(
                f"{program}.cli:main",
                [str(word) for word in words],
                files=(nothing.fileno(), file.fileno(), file.fileno() if errors is None else errors),
                environment=os.environ | ENVIRONMENT | (environment or {}),
            )
        return Command(process, output)

    def start_ranks(self, size: int, *words: object) -> list[Command]:
        """Start ranks as a launcher would."""
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(size)}
        places = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]
        return [self.start(*words, environment=meeting | place) for place in places]


def start(folder: Path, *words: object, environment: dict[str, str] | None = None) -> Command:
    """Start any program in the repository's root, with its output in a new file of the folder."""
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
    return Command(process, output)


def lint(program: str, *files: Path) -> None:
    """Fail with what a linter says about the files; skip the test where its wheel does not exist."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    linter = shutil.which(program, path=path) or pytest.skip(f"{program} is not installed")
    linted = subprocess.run([linter, *files], capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert linted.returncode == 0, linted.stdout + linted.stderr


STAND_IN = """
import os, signal, sys
sys.path.append({root!r})
from tests.warm import Warm
forked = Warm({target!r}, sys.argv[1:], environment=os.environ)
with open({started!r}, "a") as file:
    print(forked.pid, file=file)
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
    if signal.getsignal(number) != signal.SIG_IGN:
        signal.signal(number, lambda number, _: os.kill(forked.pid, number))
status = forked.wait()
sys.exit(status if status >= 0 else 128 - status)
"""


FORKED = {
    "diptych.torchrun": ("diptych.torchrun:main", "launcher"),
    "deepspeed.launcher.runner": ("deepspeed.launcher.runner:main", "launcher"),
    "deepspeed.launcher.launch": ("tests.commands:launch_by_deepspeed", "launcher"),
    "diptych.__main__": ("diptych.cli:main", "rank"),
}


def forked_launcher(folder: Path) -> dict[str, str]:
    """The environment in which `deepspeed` and `python -m` with one of FORKED are forked and import nothing.

    The process ids of a launcher and of its ranks are appended to `folder/started_{launcher,rank}`.
    """
    for module, (target, whose) in FORKED.items():
        file = folder.joinpath(*module.split(".")).with_suffix(".py")
        file.parent.mkdir(parents=True, exist_ok=True)
        for package in file.relative_to(folder).parents[:-1]:
            (folder / package / "__init__.py").touch()
        file.write_text(STAND_IN.format(root=str(ROOT), target=target, started=f"{folder}/started_{whose}"))
    program = folder / "programs" / "deepspeed"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m deepspeed.launcher.runner "$@"\n')
    program.chmod(0o755)
    path = os.pathsep.join((str(program.parent), str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    return {"PATH": path, "PYTHONPATH": str(folder), ADDRESS: address()}


def launch_by_deepspeed(words: list[str]) -> None:
    """What DeepSpeed starts on each machine, which starts the ranks there."""
    from deepspeed.launcher.launch import main

    sys.argv[1:] = words
    main()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def gone(processes: list[psutil.Process]) -> bool:
    """Whether all processes end within a few seconds."""
    _, alive = psutil.wait_procs(processes, timeout=10)
    return not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


SIGNALS = {"SIGTERM": signal.SIGTERM, "Ctrl-C": signal.SIGINT}
