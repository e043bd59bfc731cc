"""Start the ranks of a run, wait for a moment in it, and kill one of its processes there."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import psutil

from diptych.errors import UserError
from diptych.run_dir import RunDir

PATIENCE_SECONDS = 900
"""How long a started run may take to reach the next moment, or to end after a kill, before the drill gives up."""
LOOKS_SECONDS = 0.004
WRITER = "writing_service"
"""A word in the command line of the process that writes a rank's share of a checkpoint."""


@dataclass(frozen=True)
class Kill:
    """What was killed and when."""

    victim: str
    """`rank 1`, or `writer of rank 1`."""
    samples_seen: int
    """The newest samples seen in the record when it was killed."""
    in_save: bool
    """Whether a checkpoint was being written."""
    ends_run: bool = True
    """Whether the ranks end; they survive the death of a writer."""


class Attempt:
    """One start of the run: a launcher and its ranks. Leaving the block ends all of them."""

    def __init__(self, words: Sequence[str], run: RunDir, num_ranks: int, log: Path):
        self._run = run
        start = [sys.executable]
        self._num_ranks = num_ranks
        if num_ranks > 1:
            start += ["-m", "diptych.torchrun", "--standalone", "--nproc-per-node", str(num_ranks)]
        self._log = log
        programs = os.pathsep.join((os.environ.get("PATH", ""), str(Path(sys.executable).parent)))
        environment = {"OMP_NUM_THREADS": "1"} | os.environ | {"PATH": programs}
        with log.open("ab") as file:
            self._launcher = subprocess.Popen(
                [*start, "-m", "diptych", "train", *words],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        self._began = time.time()

    def __enter__(self) -> Attempt:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        processes = [process for _, process in self._ranks()]
        with_children = [each for process in processes for each in [process, *_children(process)]]
        self._launcher.kill()
        self._launcher.wait()
        for process in with_children:
            _kill(process)

    def wait(self) -> int:
        """The exit status of the launcher, once every rank has ended.

        Raises:
            UserError: they do not end.
        """
        self._until(lambda: self._launcher.poll() is not None)
        assert self._launcher.returncode is not None
        return self._launcher.returncode

    def kill_at(self, samples_seen: int, what: str, draw: random.Random) -> Kill | None:
        """Wait until the record has reached a number of samples, then kill something; None if the run ended first.

        what: `rank`: a rank, at once; `save`: a rank while a checkpoint is written; `writer`: what writes one.
        """
        run = self._run

        def is_time() -> bool:
            return self._is_over() or (
                newest_sample(run, self._began) >= samples_seen and (what == "rank" or is_saving(run))
            )

        self._until(is_time)
        time.sleep(draw.uniform(0, 0.03 if what == "rank" else 0.004))
        ranks = self._ranks()
        if self._is_over() or not ranks:
            return None
        rank, process = draw.choice(ranks)
        victim, ends_run = f"rank {rank}", True
        if what == "writer":
            writers = [child for child in _children(process) if WRITER in " ".join(_words(child))]
            if writers:
                victim, process, ends_run = f"writer of rank {rank}", writers[0], False
        kill = Kill(victim, newest_sample(run, self._began), is_saving(run), ends_run)
        _kill(process)
        return kill

    @property
    def last_words(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")[-2000:]

    def _is_over(self) -> bool:
        return self._launcher.poll() is not None

    def _ranks(self) -> list[tuple[int, psutil.Process]]:
        """The living ranks of this start, by the process numbers that they write into their heartbeat files."""
        found = []
        for rank in range(self._num_ranks):
            file = self._run.heartbeat_of(rank)
            try:
                if file.stat().st_mtime < self._began:
                    continue
                process = psutil.Process(json.loads(file.read_bytes())["pid"])
                if process.status() != psutil.STATUS_ZOMBIE:
                    found.append((rank, process))
            except (OSError, ValueError, psutil.NoSuchProcess):
                continue
        return found

    def _until(self, happened: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not happened():
            if time.monotonic() > deadline:
                raise UserError(f"{self._run.path}: stuck for {PATIENCE_SECONDS} s; see the end of {self._log}")
            time.sleep(LOOKS_SECONDS)


def newest_sample(run: RunDir, since: float = 0.0) -> int:
    """The samples seen that the newest line of the record has, if it was written after a time; else 0."""
    try:
        with run.metrics.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
            lines = file.read().split(b"\n")[:-1]
        last = json.loads(lines[-1])
        return int(last["samples_seen"]) if last["time"] >= since else 0
    except (OSError, ValueError, KeyError, IndexError):
        return 0


def is_saving(run: RunDir) -> bool:
    return any(run.checkpoints.glob("*.partial"))


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        children: list[psutil.Process] = process.children(recursive=True)
        return children
    except psutil.NoSuchProcess:
        return []


def _words(process: psutil.Process) -> list[str]:
    try:
        words: list[str] = process.cmdline()
        return words
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return []


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        pass
