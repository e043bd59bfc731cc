"""The process that `Tracker` starts: reads the record and logs it to wandb until its standard input is closed.

If wandb hangs at the start, blocks at the end or installs exit hooks in the interpreter, only this process is affected.
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
from diptych.training.metrics import PANELS, SAMPLES_SEEN, evaluated, in_panels
from diptych.training.tracker import FINISH_SECONDS, OUT_OF_REACH, WHERE, TrackedRun
from diptych.wandb_run import find_mode, is_offline, location, open_run, reason

INIT_SECONDS = 60
"""How long wandb may try to reach its server while the run goes on."""
GRACE_SECONDS = 5
"""How long it may keep trying after the run is over."""


def main() -> None:
    """Follow a run, then end the process without wandb's exit hooks, which may wait for a dead server."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["WANDB_SILENT"] = "true"  # we print the lines about wandb ourselves
    run = TrackedRun(**json.loads(sys.stdin.readline()))
    is_up, is_over = threading.Event(), threading.Event()
    mode = "offline"
    try:
        mode = find_mode(run.mode)
        if mode == "disabled":
            _end(0)
        threading.Thread(target=_watch_for_the_end, args=(run, mode, is_up, is_over), daemon=True).start()
        tracked = open_tracked(run, mode, INIT_SECONDS)
        _remember(run, tracked)
    except Exception as error:  # wandb may fail in any way
        if mode == "online":
            _end_out_of_reach(run, reason(error))
        _end(1, f"cannot start: {reason(error)}")
    is_up.set()
    _print(f"{WHERE}{location(tracked)}")
    try:
        for line in follow(Path(run.record), run.offset, is_over):
            if line.get("event") == "samples":
                _log_samples(tracked, Path(run.folder) / line["path"])
            elif line.get("event") == "evaluation":
                tracked.log(evaluated(line[SAMPLES_SEEN], line["values"]))
            elif "event" not in line:
                tracked.log(in_panels(line))
        tracked.finish()
    except Exception as error:
        _end(1, f"failed: {reason(error)}")
    _end(0)


def follow(record: Path, offset: int, is_over: threading.Event) -> Iterator[dict[str, Any]]:
    """Yield logged steps and events after byte `offset` as they are written, until `is_over` is set."""
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
    """Open the wandb run of a run directory, with samples seen as the x-axis of all metrics."""
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
    """Save which wandb run this is, for later starts and for evaluations of the same run."""
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


def _watch_for_the_end(run: TrackedRun, mode: str, is_up: threading.Event, is_over: threading.Event) -> None:
    """Wait until the training process closes our standard input or dies, then set `is_over`."""
    sys.stdin.read()
    is_over.set()
    if mode == "online" and not is_up.wait(GRACE_SECONDS):
        _end_out_of_reach(run, "no answer")
    threading.Event().wait(2 * FINISH_SECONDS)  # the training process normally ends us sooner
    os._exit(1)


def _end_out_of_reach(run: TrackedRun, why: str) -> None:
    folder = os.environ.get("WANDB_DIR") or run.folder
    _end(OUT_OF_REACH, f"out of reach ({why}); kept offline, `wandb sync {folder}/wandb/offline-run-*` sends it")


def _end(status: int, line: str = "") -> None:
    if line:
        _print(line)
    os._exit(status)


def _print(line: str) -> None:
    """Print a line for the training process, which may have been killed."""
    with suppress(BrokenPipeError):
        print(line, flush=True)


if __name__ == "__main__":
    main()
