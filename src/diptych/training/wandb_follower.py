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
from pathlib import Path
from typing import Any

from diptych.training.metrics import PANELS, SAMPLES_SEEN, in_panels
from diptych.training.tracker import FINISH_SECONDS, OUT_OF_REACH, TrackedRun

INIT_SECONDS = 60
"""How long wandb may try to reach its server while the run goes on."""
GRACE_SECONDS = 5
"""How long it may go on trying after the run is over."""


def main() -> None:
    """Never returns: what wandb leaves to be done at the interpreter's exit may wait for a dead server."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    run = TrackedRun(**json.loads(sys.stdin.readline()))
    is_up, is_over = threading.Event(), threading.Event()
    threading.Thread(target=_wait_for_the_end, args=(run, is_up, is_over), daemon=True).start()
    try:
        tracked = _start(run)
    except Exception as error:  # wandb may fail in any way
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        if run.mode == "online":
            _end_out_of_reach(run, first_line)
        _end(1, f"cannot start: {first_line}")
    is_up.set()
    try:
        for values in follow(Path(run.record), run.offset, is_over):
            tracked.log(in_panels(values))
        tracked.finish()
    except Exception as error:
        _end(1, f"failed: {error}")
    _end(0)


def follow(record: Path, offset: int, is_over: threading.Event) -> Iterator[dict[str, float]]:
    """The metrics of every logged step behind `offset`, as they are written, until it is over."""
    with record.open("rb") as file:
        file.seek(offset)
        held = b""
        while True:
            last_look = is_over.wait(1.0)
            held += file.read()
            *lines, held = held.split(b"\n")
            for line in map(json.loads, lines):
                if SAMPLES_SEEN in line and "event" not in line:
                    yield {name: value for name, value in line.items() if name != "time"}
            if last_look:
                return


def _start(run: TrackedRun) -> Any:
    import wandb

    tracked = wandb.init(
        project=run.project,
        name=run.name,
        dir=run.folder,
        id=run.tracker_id,
        resume="allow",
        mode="offline" if run.mode == "offline" else "online",
        config=run.config,
        settings=wandb.Settings(silent=True, console="off", x_disable_stats=True, init_timeout=INIT_SECONDS),
    )
    tracked.define_metric(SAMPLES_SEEN, hidden=True)
    for section in PANELS:
        tracked.define_metric(f"{section}/*", step_metric=SAMPLES_SEEN)
    return tracked


def _wait_for_the_end(run: TrackedRun, is_up: threading.Event, is_over: threading.Event) -> None:
    """Of the run: then its process closes our standard input, or has died."""
    sys.stdin.read()
    is_over.set()
    if run.mode == "online" and not is_up.wait(GRACE_SECONDS):
        _end_out_of_reach(run, "no answer")
    threading.Event().wait(2 * FINISH_SECONDS)  # only where nobody is left to end us sooner
    os._exit(1)


def _end_out_of_reach(run: TrackedRun, why: str) -> None:
    _end(OUT_OF_REACH, f"out of reach ({why}); kept offline, `wandb sync {run.folder}/wandb/offline-run-*` sends it")


def _end(status: int, line: str = "") -> None:
    if line:
        print(line, flush=True)
    os._exit(status)


if __name__ == "__main__":
    main()
