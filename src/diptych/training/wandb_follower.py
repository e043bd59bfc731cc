"""The process that `Tracker` starts: feeds wandb from the record until its standard input ends.

Whatever wandb does, hang at the start, block at the end, or install hooks for the interpreter's exit, it does here.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from diptych.files import commit_file
from diptych.run_dir import RunDir
from diptych.training.metrics import PANELS, SAMPLES_SEEN, in_panels
from diptych.training.tracker import FINISH_SECONDS, OUT_OF_REACH, WHERE, TrackedRun
from diptych.wandb_run import find_mode, is_offline, location, open_run, reason

INIT_SECONDS = 60
"""How long wandb may try to reach its server while the run goes on."""
GRACE_SECONDS = 5
"""How long it may go on trying after the run is over."""


def main() -> None:
    """Never returns: what wandb leaves to be done at the interpreter's exit may wait for a dead server."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["WANDB_SILENT"] = "true"  # what there is to say we say ourselves
    run = TrackedRun(**json.loads(sys.stdin.readline()))
    is_up, is_over = threading.Event(), threading.Event()
    mode = "offline"
    try:
        mode = find_mode(run.mode)
        if mode == "disabled":
            _end(0)
        threading.Thread(target=_wait_for_the_end, args=(run, mode, is_up, is_over), daemon=True).start()
        tracked = open_tracked(run, mode, INIT_SECONDS)
        _remember(run, tracked)
    except Exception as error:  # wandb may fail in any way
        if mode == "online":
            _end_out_of_reach(run, reason(error))
        _end(1, f"cannot start: {reason(error)}")
    is_up.set()
    _tell(f"{WHERE}{location(tracked)}")
    try:
        for line in follow(Path(run.record), run.offset, is_over):
            if line.get("event") == "samples":
                _log_samples(tracked, Path(run.folder) / line["path"])
            elif "event" not in line:
                tracked.log(in_panels(line))
        tracked.finish()
    except Exception as error:
        _end(1, f"failed: {reason(error)}")
    _end(0)


def follow(record: Path, offset: int, is_over: threading.Event) -> Iterator[dict[str, Any]]:
    """The logged steps and the events behind `offset`, as they are written, until it is over."""
    with record.open("rb") as file:
        file.seek(offset)
        held = b""
        while True:
            last_look = is_over.wait(1.0)
            held += file.read()
            *lines, held = held.split(b"\n")
            for line in map(json.loads, lines):
                if SAMPLES_SEEN in line:
                    yield {name: value for name, value in line.items() if name != "time"}
            if last_look:
                return


def open_tracked(run: TrackedRun, mode: str, init_seconds: int) -> Any:
    """The wandb run of a run directory, with samples seen as the axis of all that is logged."""
    known = run.known
    tracked = open_run(
        mode,
        wanted=run.wanted,
        defaults={
            "project": known.get("project") or "diptych",
            "entity": known.get("entity") or None,
            "run_name": known.get("name") or Path(run.folder).name,
            "root_dir": run.folder,
            "run_id": known.get("id") or run.tracker_id,
            "resume": "allow",
            "init_timeout": init_seconds,
        },
        command=run.command,
        process=run.process or None,
        config=run.config,
    )
    tracked.define_metric(SAMPLES_SEEN, hidden=True)
    for section in (*PANELS, "evaluation"):
        tracked.define_metric(f"{section}/*", step_metric=SAMPLES_SEEN)
    return tracked


def _remember(run: TrackedRun, tracked: Any) -> None:
    """For later starts and for evaluations, which belong to the same wandb run."""
    known = {
        "id": tracked.id,
        "name": tracked.name,
        "project": tracked.project,
        "entity": tracked.entity,
        "is_offline": is_offline(tracked),
        "command": run.command,
    }
    commit_file(RunDir(Path(run.folder)).wandb, (json.dumps(known) + "\n").encode())


def _log_samples(tracked: Any, picture: Path) -> None:
    import wandb

    if picture.exists():
        tracked.log({"samples": wandb.Image(str(picture), caption="the first batch, as the model sees it")})


def _wait_for_the_end(run: TrackedRun, mode: str, is_up: threading.Event, is_over: threading.Event) -> None:
    """Of the run: then its process closes our standard input, or has died."""
    sys.stdin.read()
    is_over.set()
    if mode == "online" and not is_up.wait(GRACE_SECONDS):
        _end_out_of_reach(run, "no answer")
    threading.Event().wait(2 * FINISH_SECONDS)  # only where nobody is left to end us sooner
    os._exit(1)


def _end_out_of_reach(run: TrackedRun, why: str) -> None:
    folder = os.environ.get("WANDB_DIR") or run.folder
    _end(OUT_OF_REACH, f"out of reach ({why}); kept offline, `wandb sync {folder}/wandb/offline-run-*` sends it")


def _end(status: int, line: str = "") -> None:
    if line:
        _tell(line)
    os._exit(status)


def _tell(line: str) -> None:
    """To the training process, which may have been killed."""
    with suppress(BrokenPipeError):
        print(line, flush=True)


if __name__ == "__main__":
    main()
