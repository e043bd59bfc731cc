"""A run of its own for a drill: 300 small pictures, a vocabulary, and a recipe of a tenth of a million parameters."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import numpy as np
from PIL import Image

from diptych.data.shard_writer import ShardWriter
from diptych.data.tokenizer import train_vocabulary

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "white": (240, 240, 240)}
RECIPE = """\
data: {{train: {folder}/shards}}
tokenizer: {{vocabulary: {folder}/vocabulary.json}}
model:
  embed_dim: 32
  image:
    name: vit_base_patch32_clip_quickgelu_224
    image_size: 32
    overrides: {{patch_size: 8, embed_dim: 32, depth: 1, num_heads: 2}}
  text: {{context_length: 16, width: 32, heads: 2, layers: 1}}
training: {{total_samples: 6400, global_batch_size: 32, ema_decay: 0.9}}
optimizer: {{learning_rate: 1e-3, warmup_samples: 160}}
checkpoint: {{every_samples: 160}}
"""


def write_small_run(folder: Path) -> Path:
    """Write shards, vocabulary and recipe into the folder; return the recipe."""
    write_shards(folder / "shards")
    captions = [f"a {name} picture, number {number}" for name in COLOURS for number in range(100)]
    train_vocabulary(captions, 560).save(folder / "vocabulary.json")
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.format(folder=folder))
    return recipe


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
