"""Log the results of an evaluation to the wandb run of the training.

wandb runs in a process of its own, as in training, so that it cannot harm the evaluation.
"""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from diptych.evaluation import EVALUATORS
from diptych.evaluation.evaluator import number_name, numbers
from diptych.run_dir import RunDir
from diptych.terminal import printable
from diptych.training.console import say
from diptych.training.metrics import SAMPLES_SEEN
from diptych.training.tracker import OUT_OF_REACH, WHERE, TrackedRun, remembered, tracked_run
from diptych.training.wandb_follower import open_tracked
from diptych.wandb_run import find_mode, is_disabled, is_silent, location, reason

SECONDS = 90
"""How long wandb may take in all."""
INIT_SECONDS = 20
"""How long its server may take to answer."""


def log_results(run: RunDir, evaluation: Mapping[str, Any], page: Path | None) -> None:
    """Log numbers, a table of wrong answers and the report, if the run was tracked; never raises.

    A run that was tracked offline stays offline until the user uploads it.
    """
    try:
        known, config = remembered(run), run.read_config()
        if not known or is_disabled(config.tracking.wandb):
            return
        if run.is_training():
            # If two processes write the same wandb run, each may end it for the other.
            say("wandb: the results are not logged while the run is trained; evaluate again once it has ended")
            return
        tracked = tracked_run(run, config, known["id"])
        same = {"run_id": known["id"], "run_name": known["name"], "project": known["project"]}
        same["entity"] = known["entity"] or None
        # The wandb run keeps the training's command, and gets no system metrics of this process.
        wanted = tracked.wanted | same | {"x_disable_stats": True}
        tracked = replace(tracked, wanted=wanted, command=known["command"])
        results = {
            "values": {SAMPLES_SEEN: _samples_seen(Path(evaluation["model"])), **dict(_numbers(evaluation))},
            "wrong": {_titled(name, each): _wrong(each) for name, each in evaluation.get("zero_shot", {}).items()},
            "page": str(page) if page else None,
        }
        if known["is_offline"]:
            tracked = replace(tracked, mode="offline")
        if _log_in_another_process(tracked, results) == OUT_OF_REACH:
            _log_in_another_process(replace(tracked, mode="offline"), results)
    except Exception as error:  # a tracker may fail in any way, and a run directory of earlier versions hold anything
        say(f"wandb: the results are not logged: {reason(error)}")


def main() -> None:
    """Read a run and its results from standard input and log them."""
    os.environ["WANDB_SILENT"] = "true"
    request = json.load(sys.stdin)
    run, results = TrackedRun(**request["run"]), request["results"]
    is_open, mode = False, "offline"
    try:
        mode = find_mode(run.mode)
        if mode == "disabled":
            _end(0)
        tracked = open_tracked(run, mode, INIT_SECONDS)
        is_open = True
        tracked.log(results["values"] | dict(_media(results)))
        tracked.finish()
    except Exception as error:  # wandb may fail in any way
        if mode == "online" and not is_open:
            _end(OUT_OF_REACH, f"out of reach ({reason(error)})")
        _end(1, f"the results are not logged ({reason(error)})")
    _end(0, f"{WHERE}{location(tracked)}")


def _log_in_another_process(run: TrackedRun, results: Mapping[str, Any]) -> int:
    """Log in a child process, print its output, and return its exit status."""
    command = [sys.executable, "-m", "diptych.training.wandb_results"]
    request = json.dumps({"run": asdict(run), "results": results})
    try:
        done = subprocess.run(command, input=request, stdout=subprocess.PIPE, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        say(f"wandb did not finish within {SECONDS} s and is left behind; `wandb sync` sends what it lacks")
        return 0
    for line in done.stdout.splitlines():
        if not (line.startswith(WHERE) and is_silent()):
            say(f"wandb:   {printable(line.removeprefix(WHERE))}")
    return done.returncode


def _numbers(evaluation: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """(name, value) of every number of every data set, with names such as `evaluation/unseen/top1`."""
    for evaluator in EVALUATORS:
        for name, result in evaluation.get(evaluator, {}).items():
            for number in numbers(result):
                fits = EVALUATORS[evaluator].fits
                full_name = number_name(evaluator, _titled(name, result), number.name, fits=fits)
                yield f"evaluation/{full_name}", number.value


def _titled(name: str, result: Mapping[str, Any]) -> str:
    return f"{name} (seen in training)" if result.get("seen_in_training") else name


def _wrong(result: Mapping[str, Any]) -> list[list[Any]]:
    """Each wrong example as [picture as data URI, file, its class, the class it was taken for, probability]."""
    classes = result["classes"]
    return [
        [each["picture"], each["name"], classes[each["label"]], classes[each["guesses"][0][0]], each["guesses"][0][1]]
        for each in result["wrong"]
    ]


def _samples_seen(model: Path) -> int:
    """Samples seen by the checkpoint that contains a model folder."""
    return int(json.loads((model.parent / "progress.json").read_text(encoding="utf-8"))["samples_seen"])


def _media(results: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    import wandb
    from PIL import Image

    for name, rows in results["wrong"].items():
        table = wandb.Table(columns=["picture", "file", "is", "taken for", "certainty"])
        for picture, *row in rows:
            encoded = base64.b64decode(picture.partition(",")[2])
            table.add_data(wandb.Image(Image.open(io.BytesIO(encoded))), *row)
        yield f"evaluation/{name}/wrong", table
    if results["page"]:
        yield "report", wandb.Html(Path(results["page"]), inject=False)


def _end(status: int, line: str = "") -> None:
    """End the process without wandb's exit hooks, which may wait for a dead server."""
    if line:
        print(line, flush=True)
    os._exit(status)


if __name__ == "__main__":
    main()
