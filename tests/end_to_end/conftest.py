"""One small recipe on real shards, and uninterrupted runs of it, with which many tests compare theirs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from diptych.checkpoint_folder import checkpoints, verify
from diptych.drill.small_run import write_small_run
from diptych.run_dir import read_metrics
from tests.commands import ROOT, WarmCommands, forked_launcher, start
from tests.conftest import MadeOnce

STEPS = 25
"""Two epochs and a part of the third, and a checkpoint at each fifth step."""


@dataclass(frozen=True)
class Outcome:
    """The results of a run; equal runs are equal in all of them."""

    files: dict[str, dict]
    """File of the last checkpoint (weights, averages, optimizer's state) → its size and sha256."""
    losses: list[tuple[int, float]]
    """Samples seen after every step, in the order of the record."""


def outcome(run_dir: Path) -> Outcome:
    last = checkpoints(run_dir / "checkpoints")[0]
    assert last.name == f"step_{STEPS:08d}"
    manifest = verify_whole(last)
    tensors = {name: each for name, each in manifest.items() if name.endswith(".safetensors")}
    assert {name.partition("/")[0] for name in tensors} == {"model", "ema", "optimizer"}
    return Outcome(tensors, losses(run_dir))


def verify_whole(checkpoint: Path) -> dict[str, dict]:
    """The files of a checkpoint that passes verification, as its manifest describes them."""
    verify(checkpoint)
    return json.loads((checkpoint / "manifest.json").read_text())["files"]


def losses(run_dir: Path) -> list[tuple[int, float]]:
    return [(line["samples_seen"], line["loss"]) for line in read_metrics(run_dir / "metrics.jsonl") if "loss" in line]


@pytest.fixture(scope="session")
def recipe(made_once: MadeOnce) -> Path:
    """The small run of `diptych drill`, shorter, with a logged line for every step."""

    def write(folder: Path) -> None:
        file = write_small_run(folder)
        values = yaml.safe_load(file.read_text())
        values["training"]["total_samples"] = 32 * STEPS
        values["tracking"] = {"log_every_steps": 1, "wandb": "off"}
        file.write_text(yaml.safe_dump(values))

    return made_once("recipe", write) / "recipe.yaml"


@pytest.fixture(scope="session")
def alone(warm: WarmCommands, recipe: Path, made_once: MadeOnce) -> Path:
    """The run directory of an uninterrupted run of one process."""

    def train(folder: Path) -> None:
        command = warm.start("train", recipe, f"run_dir={folder / 'run'}")
        assert command.wait() == 0, command.said

    return made_once("alone", train) / "run"


@pytest.fixture(scope="session")
def on_two_ranks(recipe: Path, made_once: MadeOnce) -> Path:
    """The run directory of an uninterrupted run of two ranks, started by launch/one_node.sh."""

    def train(folder: Path) -> None:
        script = ROOT / "launch" / "one_node.sh"
        environment = {"RANKS": "2", **forked_launcher(folder)}
        command = start(folder, script, recipe, f"run_dir={folder / 'run'}", environment=environment)
        assert command.wait() == 0, command.said

    return made_once("on_two_ranks", train) / "run"
