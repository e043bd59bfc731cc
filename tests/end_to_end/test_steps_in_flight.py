"""Several steps are queued on the device before the results of the last ones are read, as on a GPU."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

import diptych.training.loop as loop
from diptych.config.load import load_config
from diptych.data.loader_processes import LoaderProcesses
from diptych.loss import LOSSES, LossOutput
from diptych.run_dir import read_metrics
from diptych.training.loop import MAX_SKIPPED_STEPS, NonFiniteError, train
from diptych.world import World
from tests.end_to_end.conftest import STEPS, losses, outcome
from tests.ranks import run_ranks


def stop_and_go_on(rank: int, recipe: Path, run_dir: Path) -> list[tuple[int, float]]:
    """Stop the run when the record has 15 steps and return the losses so far; then let it finish."""
    loop.STEPS_IN_FLIGHT["cpu"] = 2
    loaded = load_config([recipe], [f"run_dir={run_dir}"])
    reported = loop.report

    def report_and_ask(job: Any, progress: Any, *others: Any) -> None:
        reported(job, progress, *others)
        if progress.samples_seen == 15 * 32:
            signal.raise_signal(signal.SIGTERM)

    loop.report = report_and_ask  # type: ignore[assignment]
    train(loaded, World(), LoaderProcesses(1))
    stopped = losses(run_dir)
    train(loaded, World(), LoaderProcesses(1))
    return stopped


def test_a_run_two_steps_ahead_of_its_numbers_stops_and_ends_bit_identical(recipe, alone, tmp_path):
    [stopped] = run_ranks(1, stop_and_go_on, recipe, tmp_path / "run")
    # The signal came with two steps in flight, which also reach the record and the checkpoint.
    assert stopped[-1][0] in range(16 * 32, 21 * 32) and len(stopped) < STEPS
    assert outcome(tmp_path / "run") == outcome(alone)


def poisoned(rank: int, recipe: Path, run_dir: Path, bad_steps: range) -> str | None:
    """Train with a loss that is not a number in some steps, and return the error that ended the run."""
    healthy, number = LOSSES["softmax"], iter(range(10_000))

    def loss(*inputs: Any) -> LossOutput:
        value, statistics = healthy(*inputs)
        return LossOutput(value * (float("nan") if next(number) in bad_steps else 1.0), statistics)

    LOSSES["softmax"] = loss
    try:
        train(load_config([recipe], [f"run_dir={run_dir}", "training.total_samples=960"]), World(), LoaderProcesses(1))
    except NonFiniteError as error:
        return str(error)
    return None


@pytest.mark.parametrize("num_bad", [1, MAX_SKIPPED_STEPS])
def test_a_step_without_finite_numbers_is_skipped_and_many_in_a_row_end_the_run(num_bad, recipe, tmp_path):
    [error] = run_ranks(1, poisoned, recipe, tmp_path / "run", range(12, 12 + num_bad))
    record = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "learning_rate" in line]
    if num_bad == 1:
        assert error is None and record[-1]["samples_seen"] == 960 and record[-1]["skipped_steps"] == 1
    else:
        assert error is not None and error.startswith("the loss of the step after 672 samples is not finite (loss nan")
        assert "optimizer.learning_rate below 0.001" in error and "model.initial_weights=" in error
        assert record[-1]["samples_seen"] == 672 and "loss" not in record[-1]
