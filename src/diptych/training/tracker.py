"""Run wandb in a process of its own that reads the record of a run, so that it cannot delay or crash training."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from diptych.config.schema import RunConfig
from diptych.config.values import config_to_dict
from diptych.run_dir import RunDir
from diptych.training.console import say
from diptych.wandb_run import is_silent, user_command

logger = logging.getLogger(__name__)

FINISH_SECONDS = 20
"""How long a tracker may take to finish at the end of a run."""

OUT_OF_REACH = 75
"""Exit status of a process that could not reach wandb; EX_TEMPFAIL of sysexits.h."""

WHERE = "where "
"""The first word of the line that gives the run's location; every other line of the process is a warning."""


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """The description of a run that is passed to wandb's process."""

    folder: str
    """The run directory."""
    tracker_id: str
    mode: str
    """auto, online or offline"""
    wanted: dict[str, Any]
    """Settings from the config, by their names in `wandb.Settings`."""
    config: dict[str, Any]
    command: list[str]
    record: str = ""
    """The file to read, as it grows."""
    offset: int = 0
    """The byte at which to start reading."""
    process: int = 0
    """The process whose system metrics are recorded."""
    known: dict[str, Any] = field(default_factory=dict)
    """The wandb run of an earlier start, from `remembered`; it is continued unless settings say otherwise."""


def tracked_run(run: RunDir, config: RunConfig, tracker_id: str) -> TrackedRun:
    tracking = config.tracking
    return TrackedRun(
        folder=str(run.path),
        tracker_id=tracker_id,
        mode=tracking.wandb,
        wanted={
            "project": tracking.wandb_project,
            "entity": tracking.wandb_entity,
            "run_name": tracking.wandb_name,
            "run_group": tracking.wandb_group,
            "run_tags": list(tracking.wandb_tags) if tracking.wandb_tags else None,
            "run_notes": tracking.wandb_notes,
        },
        config=config_to_dict(config),
        command=user_command(),
    )


class Tracker:
    """Starts the process `wandb_follower`; if it cannot reach wandb, starts another that keeps the run offline."""

    def __init__(self, run: TrackedRun):
        self._run = run
        self._where = ""
        self._lock = threading.Lock()
        self._is_closing = False
        self._process = self._start(run)
        self._watch = threading.Thread(target=self._watch_process, daemon=True)
        self._watch.start()

    def close(self) -> None:
        """Wait up to FINISH_SECONDS until wandb has sent the whole record, then end its process."""
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
        self._say_where()

    def _start(self, run: TrackedRun) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "diptych.training.wandb_follower"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # so that the terminal's Ctrl-C reaches only the training process
        )
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(asdict(run)) + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            pass  # `_watch_process` reports its exit status
        return process

    def _watch_process(self) -> None:
        """Log the output of the process until it ends; if wandb is out of reach, start another offline, once."""
        status = self._listen()
        if status == OUT_OF_REACH:
            with self._lock:
                self._process = self._start(replace(self._run, mode="offline"))
                if self._is_closing:
                    self._say_it_is_over()
            status = self._listen()
        if status > 0:
            logger.warning("wandb ended with status %d and is left out from here on", status)

    def _listen(self) -> int:
        assert self._process.stdout is not None
        with self._process.stdout as said:
            for line in map(str.rstrip, said):
                if line.startswith(WHERE):
                    self._where = line.removeprefix(WHERE)
                    if not self._is_closing:
                        self._say_where()
                else:
                    logger.warning("wandb: %s", line)
        status = self._process.wait()
        with self._lock:
            self._say_it_is_over()
        return status

    def _say_where(self) -> None:
        """Print the run's location: at the start, and again at the end, when the first line has scrolled away."""
        if self._where and not is_silent():
            say(f"wandb: {self._where}")

    def _say_it_is_over(self) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            pass


def remembered(run: RunDir) -> dict[str, Any]:
    """The wandb run of a run directory (`id`, `name`, `project`, `entity`, `is_offline`, `command`); empty if none."""
    try:
        known = json.loads(run.wandb.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) and isinstance(known.get("id"), str) else {}
