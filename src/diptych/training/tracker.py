"""wandb in a process of its own, which follows the record of a run: training neither waits for it nor falls with it."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
from dataclasses import asdict, dataclass
from typing import Any

logger = logging.getLogger(__name__)

FINISH_SECONDS = 20
"""How long a tracker may take to say goodbye."""

OUT_OF_REACH = 75
"""Exit status of a process that could not reach wandb; EX_TEMPFAIL of sysexits.h."""


@dataclass(frozen=True)
class TrackedRun:
    """What wandb is told of a run, and which record is followed from which byte on."""

    record: str
    offset: int
    folder: str
    project: str
    name: str
    tracker_id: str
    mode: str
    """online or offline"""
    config: dict[str, Any]


class Tracker:
    """Starts `wandb_follower`; one that cannot reach wandb is replaced by one that keeps the run offline."""

    def __init__(self, run: TrackedRun):
        self._run = run
        self._lock = threading.Lock()
        self._is_closing = False
        self._process = self._start(run.mode)
        self._watch = threading.Thread(target=self._watch_process, daemon=True)
        self._watch.start()

    def close(self) -> None:
        """Give wandb the time to send what the record holds, and end it if that is too short."""
        with self._lock:
            self._is_closing = True
            self._say_it_is_over()
        self._watch.join(FINISH_SECONDS)
        if self._watch.is_alive():
            logger.warning(
                "wandb did not finish within %d s and is left behind; `wandb sync %s/wandb/*run-*` sends what it lacks",
                FINISH_SECONDS,
                self._run.folder,
            )
            with self._lock:
                self._process.kill()
            self._watch.join()

    def _start(self, mode: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "diptych.training.wandb_follower"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # the terminal's Ctrl-C is ours to answer
        )
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(asdict(self._run) | {"mode": mode}) + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            pass  # its exit status will tell
        return process

    def _watch_process(self) -> None:
        """Log what it says until it ends; once, start another that keeps the run offline."""
        status = self._listen()
        if status == OUT_OF_REACH:
            with self._lock:
                self._process = self._start("offline")
                if self._is_closing:
                    self._say_it_is_over()
            status = self._listen()
        if status > 0:
            logger.warning("wandb ended with status %d and is left out from here on", status)

    def _listen(self) -> int:
        assert self._process.stdout is not None
        with self._process.stdout as said:
            for line in said:
                logger.warning("wandb: %s", line.rstrip())
        status = self._process.wait()
        with self._lock:
            self._say_it_is_over()
        return status

    def _say_it_is_over(self) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            pass
