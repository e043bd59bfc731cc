"""Several steps are queued on the device before the results of the last ones are read, as on a GPU."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import diptych.training.loop as loop
from diptych.config.load import load_config
from diptych.data.loader_processes import LoaderProcesses
from diptych.world import World
from tests.end_to_end.conftest import STEPS, losses, outcome
from tests.ranks import run_ranks, train_on_ranks


def stop_and_go_on(rank: int, recipe: Path, run_dir: Path) -> list[tuple[int, float]]:
    """Stop the run when the record has 12 steps and return the losses so far; then let it finish."""
    loop.STEPS_IN_FLIGHT["cpu"] = 2
    loaded = load_config([recipe], [f"run_dir={run_dir}"])
    reported = loop.report

    def report_and_ask(job: Any, progress: Any, *others: Any) -> None:
        reported(job, progress, *others)
        if progress.samples_seen == 12 * 32:
            signal.raise_signal(signal.SIGTERM)

    loop.report = report_and_ask  # type: ignore[assignment]
    train_on_ranks(loaded, World(), LoaderProcesses(1))
    stopped = losses(run_dir)
    train_on_ranks(loaded, World(), LoaderProcesses(1))
    return stopped


def test_a_run_two_steps_ahead_of_its_numbers_stops_and_ends_bit_identical(recipe, alone, tmp_path):
    [stopped] = run_ranks(1, stop_and_go_on, recipe, tmp_path / "run")
    # The signal came with two steps in flight, which also reach the record and the checkpoint.
    assert stopped[-1][0] == 14 * 32 < STEPS * 32
    assert outcome(tmp_path / "run") == outcome(alone)


def stop_at_the_end(rank: int, recipe: Path, run_dir: Path) -> bool:
    """Whether a run came to its end that was asked to stop when its last step was recorded."""
    loaded = load_config([recipe], [f"run_dir={run_dir}"])
    reported = loop.report

    def report_and_ask(job: Any, progress: Any, *others: Any) -> None:
        reported(job, progress, *others)
        if progress.samples_seen == STEPS * 32:
            signal.raise_signal(signal.SIGTERM)

    loop.report = report_and_ask  # type: ignore[assignment]
    return train_on_ranks(loaded, World(), LoaderProcesses(1))


def test_a_run_that_is_asked_to_stop_after_its_last_step_has_ended(recipe, alone, tmp_path):
    assert run_ranks(1, stop_at_the_end, recipe, tmp_path / "run") == [True]
    assert outcome(tmp_path / "run") == outcome(alone)
    assert json.loads((tmp_path / "run" / "end.json").read_text()) == json.loads((alone / "end.json").read_text())
