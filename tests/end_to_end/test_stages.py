"""A run in stages, stopped and killed, also at the edge of a stage, ends as an uninterrupted one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from diptych.checkpoint_folder import checkpoints
from diptych.model_folder import model_folder, read_model_folder
from diptych.run_dir import read_metrics
from tests.end_to_end.conftest import STEPS, losses, outcome

EDGES = (10, 18)
"""Steps after which a stage begins: with a checkpoint, and without."""


@pytest.fixture(scope="module")
def staged(recipe, tmp_path_factory) -> Path:
    """The recipe with two stages before the last, whose masks and sizes differ."""
    values = yaml.safe_load(recipe.read_text())
    values["training"]["stages"] = [
        {"samples": 310, "image_size": 16, "context_length": 6, "learning_rate_scale": 0.5},
        {"samples": 258, "image_size": 24, "patch_dropout": 0.4},
        {},
    ]
    values["checkpoint"]["keep"] = 9
    file = tmp_path_factory.mktemp("staged") / "recipe.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


@pytest.fixture(scope="module")
def whole(warm, staged, tmp_path_factory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "whole"
    command = warm.start("train", staged, f"run_dir={run_dir}")
    assert command.wait() == 0, command.said
    return run_dir


def copied_after(step: int, run_dir: Path, copy: Path) -> Path:
    """A copy of the run as it was after its checkpoint of this step."""
    shutil.copytree(run_dir, copy)
    for path in checkpoints(copy / "checkpoints"):
        if int(path.name.removeprefix("step_")) > step:
            shutil.rmtree(path)
    return copy


def test_each_step_has_the_stage_of_its_batch_and_one_schedule(whole):
    lines = [line for line in read_metrics(whole / "metrics.jsonl") if "loss" in line]
    assert [line["stage"] for line in lines] == [1] * 10 + [2] * 8 + [3] * 7
    rates = [line["learning_rate"] for line in lines]
    assert rates[4] == 0.5e-3, "the end of the warm-up, in a stage of half the learning rate"
    assert rates[9] < 0.55 * rates[10] and 0 < rates[-1] < rates[10]
    progress = json.loads((whole / "checkpoints" / f"step_{STEPS:08d}" / "progress.json").read_text())
    assert len(progress["losses"]) == STEPS - EDGES[1], "a loss is compared with those of its own stage"


def test_a_run_that_goes_on_at_the_edge_of_a_stage_ends_bit_identical(warm, staged, whole, tmp_path):
    run_dir = copied_after(EDGES[0], whole, tmp_path / "run")
    command = warm.start("train", staged, f"run_dir={run_dir}", "machine.loader_workers=2")
    assert command.wait() == 0, command.said
    assert f"going on after {EDGES[0] * 32:,} samples" in command.said
    assert outcome(run_dir) == outcome(whole)


def test_a_run_killed_after_the_last_step_of_each_stage_ends_bit_identical(warm, staged, whole, tmp_path):
    run_dir = tmp_path / "run"
    for edge in EDGES:
        command = warm.start("train", staged, f"run_dir={run_dir}")
        command.wait_until(lambda edge=edge: run_dir.exists() and len(logged(run_dir)) >= edge)
        command.kill()
        command.wait()
    command = warm.start("train", staged, f"run_dir={run_dir}")
    assert command.wait() == 0, command.said
    assert outcome(run_dir) == outcome(whole)


def logged(run_dir: Path) -> list[tuple[int, float]]:
    return losses(run_dir) if (run_dir / "metrics.jsonl").exists() else []


def test_two_ranks_that_take_up_the_run_of_one_at_an_edge_compute_the_same(warm, staged, whole, tmp_path):
    run_dir = copied_after(EDGES[0], whole, tmp_path / "run")
    ranks = warm.start_ranks(2, "train", staged, f"run_dir={run_dir}")
    assert [rank.wait() for rank in ranks] == [0, 0], ranks[0].said
    one, two = losses(whole), losses(run_dir)
    assert len(two) == STEPS and two[: EDGES[0]] == one[: EDGES[0]]
    # As for runs without stages: sums over ranks have another order.
    assert [loss for _, loss in two] == pytest.approx([loss for _, loss in one], abs=1e-5)
    weights, expected = (read_model_folder(model_folder(each))[0] for each in (run_dir, whole))
    assert max(float((weights[name] - expected[name]).abs().max()) for name in expected) < 1e-5


def test_another_stage_in_a_runs_directory_is_refused_by_name(warm, staged, whole):
    command = warm.start("train", staged, f"run_dir={whole}", "training.stages=[{samples: 320, image_size: 16}, {}]")
    assert command.wait() == 2
    assert f"{whole}: holds a run with training.stages = [{{'samples': 310," in command.said.splitlines()[0]


@pytest.mark.parametrize(
    ("stage", "mistake"),
    [
        (
            "image_size: 20",
            "training.stages[0].image_size 20 is not a multiple of the patch size 8 of vit_base_patch32_",
        ),
        ("context_length: 40", "training.stages[0].context_length is 40; it must be at least 3 and at most"),
    ],
)
def test_a_stage_that_cannot_be_trained_is_refused_before_anything_is_written(warm, staged, tmp_path, stage, mistake):
    run_dir = tmp_path / "run"
    command = warm.start("train", staged, f"run_dir={run_dir}", f"training.stages=[{{samples: 320, {stage}}}, {{}}]")
    assert command.wait() == 2
    (line,) = command.said.splitlines()
    assert line.startswith(f"diptych train: command line: {mistake}")
    assert not run_dir.exists()


def test_a_model_that_cannot_be_built_is_one_line_with_stages_too(warm, staged, tmp_path):
    command = warm.start("train", staged, f"run_dir={tmp_path / 'run'}", "model.image.name=vit_large_patch99")
    assert command.wait() == 2
    assert [line[:50] for line in command.said.splitlines()] == ["diptych train: command line: model.image.name 'vit"]
