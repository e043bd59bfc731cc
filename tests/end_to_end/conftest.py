"""One small recipe on real shards, and uninterrupted runs of it, with which many tests compare theirs."""

from __future__ import annotations

import io
import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diptych.checkpoint_folder import checkpoints, verify
from diptych.data.shard_writer import ShardWriter
from diptych.data.tokenizer import train_vocabulary
from diptych.run_dir import read_metrics
from tests.commands import ROOT, forked_launcher, start

STEPS = 25
"""Two epochs and a part of the third, and a checkpoint at each fifth step."""
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "white": (240, 240, 240)}
RECIPE = """
data: {{train: {folder}/shards}}
tokenizer: {{vocabulary: {folder}/vocabulary.json}}
model:
  embed_dim: 32
  image:
    name: vit_base_patch32_clip_quickgelu_224
    image_size: 32
    overrides: {{patch_size: 8, embed_dim: 32, depth: 1, num_heads: 2}}
  text: {{context_length: 16, width: 32, heads: 2, layers: 1}}
training: {{total_samples: {samples}, global_batch_size: 32, ema_decay: 0.9}}
optimizer: {{learning_rate: 1e-3, warmup_samples: 160}}
checkpoint: {{every_samples: 160}}
tracking: {{log_every_steps: 1, wandb: "off"}}
"""


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
    import json

    verify(checkpoint)
    return json.loads((checkpoint / "manifest.json").read_text())["files"]


def losses(run_dir: Path) -> list[tuple[int, float]]:
    return [(line["samples_seen"], line["loss"]) for line in read_metrics(run_dir / "metrics.jsonl") if "loss" in line]


def write_shards(folder: Path) -> None:
    """Write three shards of 100 pictures of one colour each, made different by noise."""
    draw = np.random.default_rng(0)
    names = itertools.cycle(COLOURS)
    for shard in range(3):
        with ShardWriter(folder, shard) as writer:
            for row in range(100):
                name = next(names)
                pixels = np.array(COLOURS[name]) + draw.integers(-15, 15, (32, 32, 3))
                picture = io.BytesIO()
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(picture, "PNG")
                caption = f"a {name} picture, number {row}"
                writer.add(f"{shard}_{row:03d}", {"png": picture.getvalue(), "txt": caption.encode()})


@pytest.fixture(scope="session")
def recipe(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    write_shards(folder / "shards")
    captions = [f"a {name} picture, number {number}" for name in COLOURS for number in range(100)]
    train_vocabulary(captions, 560).save(folder / "vocabulary.json")
    file = folder / "recipe.yaml"
    file.write_text(RECIPE.format(folder=folder, samples=32 * STEPS))
    return file


@pytest.fixture(scope="session")
def alone(warm, recipe, tmp_path_factory) -> Path:
    """The run directory of an uninterrupted run of one process."""
    run_dir = tmp_path_factory.mktemp("runs") / "alone"
    command = warm.start("train", recipe, f"run_dir={run_dir}")
    assert command.wait() == 0, command.said
    return run_dir


@pytest.fixture(scope="session")
def on_two_ranks(recipe, tmp_path_factory) -> Path:
    """The run directory of an uninterrupted run of two ranks, started by launch/one_node.sh."""
    folder = tmp_path_factory.mktemp("runs")
    script = ROOT / "launch" / "one_node.sh"
    environment = {"RANKS": "2", **forked_launcher(folder)}
    command = start(folder, script, recipe, f"run_dir={folder / 'two'}", environment=environment)
    assert command.wait() == 0, command.said
    return folder / "two"
