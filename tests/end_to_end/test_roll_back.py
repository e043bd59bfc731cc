"""Steps that are not finite, or whose loss jumps: what is written down, and how a run goes back to a checkpoint."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import diptych.training.loop as loop
import diptych.training.trouble as trouble
from diptych.checkpoint_folder import was_well
from diptych.config.load import load_config
from diptych.data.loader_processes import LoaderProcesses
from diptych.data.mixture import open_mixture
from diptych.run_dir import read_metrics
from diptych.training.engine import Engine
from diptych.training.job import order_of
from diptych.training.roll_back import MAX_ROLL_BACKS, NonFiniteError
from diptych.training.trouble import MAX_IN_A_ROW
from diptych.world import World
from tests.end_to_end.conftest import STEPS, outcome
from tests.ranks import run_ranks, train_on_ranks

FIRST_BAD = 7
"""The batch with which the trouble begins; the newest checkpoint is then that of step 5."""


def poison(is_bad: Callable[[int], bool], change: Callable[[Any], Any]) -> None:
    """Change the loss of bad batches, by their number, on this rank."""
    step = Engine.step

    def poisoned_step(self: Engine, batch: Any, samples_seen: int, **others: Any) -> Any:
        healthy = self._objective

        def loss(*inputs: Any) -> Any:
            value, numbers = healthy(*inputs)
            return change(value), numbers

        self._objective = loss if is_bad(samples_seen // 32) else healthy
        try:
            return step(self, batch, samples_seen, **others)
        finally:
            self._objective = healthy

    Engine.step = poisoned_step  # type: ignore[method-assign]


def train_poisoned(
    rank: int,
    size: int,
    recipe: Path,
    run_dir: Path,
    bad: range,
    kind: str,
    stops: tuple[int, ...] = (),
    words: tuple[str, ...] = (),
) -> str | None:
    """Train two steps ahead of the numbers, stop after some steps and go on; return the error that ended the run.

    words: further settings.
    """
    loop.STEPS_IN_FLIGHT["cpu"] = 2
    trouble.MIN_LOSSES = 6  # type: ignore[misc]
    changes = {"nan": lambda value: value * math.nan, "spike": lambda value: value * 50}
    poison(lambda number: number in bad, changes[kind])
    settings = [f"run_dir={run_dir}", f"training.total_samples={(STEPS if len(bad) < 100 else 100) * 32}"]
    settings += words
    if kind == "spike":
        settings.append("checkpoint.roll_back_on_loss_spikes=true")
    log_rejects = loop.log_rejects
    for stop in (*stops, None):

        def ask(batch: Any, stop: int | None = stop, batches: list[Any] = []) -> None:  # noqa: B006
            batches.append(batch)
            if len(batches) == stop:
                signal.raise_signal(signal.SIGTERM)
            log_rejects(batch)

        loop.log_rejects = ask
        try:
            train_on_ranks(load_config([recipe], settings), World(rank, size=size), LoaderProcesses(1))
        except NonFiniteError as error:
            return str(error)
    return None


def events(run_dir: Path, name: str) -> list[dict[str, Any]]:
    return [line for line in read_metrics(run_dir / "metrics.jsonl") if line.get("event") == name]


def test_the_samples_of_a_bad_step_are_written_down_and_the_run_goes_on(recipe, tmp_path):
    bad = range(FIRST_BAD, FIRST_BAD + 1)
    assert run_ranks(2, train_poisoned, 2, recipe, tmp_path, bad, "nan") == [None, None]
    last = [line for line in read_metrics(tmp_path / "metrics.jsonl") if "learning_rate" in line][-1]
    assert last["samples_seen"] == STEPS * 32 and last["skipped_steps"] == 1
    [file] = (tmp_path / "bad_steps").iterdir()
    written = json.loads(file.read_text())
    assert file.stem == f"step_{FIRST_BAD + 1:08d}" and "is not finite (loss nan" in written["why"]
    config = load_config([recipe], [f"run_dir={tmp_path}"]).config
    mixture = open_mixture(config.data)
    samples = order_of(config, mixture).rows(FIRST_BAD).samples.tolist()
    for rank, ours in zip(written["ranks"], (samples[:16], samples[16:]), strict=True):
        places = [mixture.index.locate(sample) for sample in ours]
        expected = {(str(mixture.index.shards[shard].path), row) for shard, row in places}
        assert {(shard, row) for shard, rows in rank["rows_by_shard"].items() for row in rows} == expected


@pytest.mark.parametrize(("size", "kind"), [(2, "nan"), (1, "spike")])
def test_a_run_goes_back_to_its_newest_good_checkpoint_wherever_it_is_stopped(size, kind, recipe, tmp_path):
    """Stopped among the bad steps, and once more right after the roll-back."""
    bad = range(FIRST_BAD, FIRST_BAD + MAX_IN_A_ROW)
    for name, stops in (("whole", ()), ("stopped", (12, 5))):
        errors = run_ranks(size, train_poisoned, size, recipe, tmp_path / name, bad, kind, stops)
        assert errors == [None] * size
        [event] = events(tmp_path / name, "rolled_back")
        assert event["to"] == 5 * 32
    whole, stopped = outcome(tmp_path / "whole"), outcome(tmp_path / "stopped")
    assert whole == stopped
    progress = json.loads((tmp_path / "whole/checkpoints" / f"step_{STEPS:08d}" / "progress.json").read_text())
    assert progress["roll_backs"] == [[5 * 32, (bad.stop + 2) * 32]] and progress["samples_seen"] == STEPS * 32
    trained = [samples // 32 - 1 for samples, _ in whole.losses]
    assert set(range(bad.stop + 2, STEPS)) < set(trained) and bad.stop + 1 not in trained


def test_a_run_that_never_recovers_ends_with_one_line(recipe, tmp_path):
    [error] = run_ranks(1, train_poisoned, 1, recipe, tmp_path, range(FIRST_BAD, 1000), "nan")
    assert error is not None and f"gone back to those after 160 samples {MAX_ROLL_BACKS} times" in error
    assert "optimizer.learning_rate below 0.001" in error and "\n" not in error
    offered = Path(error.rpartition("model.initial_weights=")[2])
    assert offered.parent == tmp_path / "checkpoints" and was_well(offered)


def test_a_run_without_a_checkpoint_ends_with_one_line(recipe, tmp_path):
    [error] = run_ranks(1, train_poisoned, 1, recipe, tmp_path, range(2, 1000), "nan")
    assert error is not None and "there is no good checkpoint to go back to" in error
    assert "model.initial_weights" not in error, "nothing was learned"


def test_a_branch_goes_back_to_the_checkpoint_that_it_began_from(recipe, alone, tmp_path):
    """Its own first checkpoint was saved among the bad steps, and it goes on in another stage."""
    branches_at, bad = 15, range(15, 15 + MAX_IN_A_ROW)
    words = (f"initial_checkpoint={alone}/checkpoints/step_{branches_at:08d}", f"training.total_samples={30 * 32}")
    words += (f"training.stages=[{{samples: {20 * 32}, learning_rate_scale: 0.5}}, {{}}]",)
    assert run_ranks(1, train_poisoned, 1, recipe, tmp_path, bad, "nan", (), words) == [None]
    [event] = events(tmp_path, "rolled_back")
    assert event["to"] == branches_at * 32
    progress = json.loads((tmp_path / "checkpoints" / "step_00000030" / "progress.json").read_text())
    assert len(progress["losses"]) == 30 - (bad.stop + 2), "those of the trunk are of another stage"
