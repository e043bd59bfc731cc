"""The models, batches and peers that are measured, in two sizes: full for a GPU, tiny for a test."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch

os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")  # read by DeepSpeed's import

from diptych.config.load import load_config
from diptych.config.schema import MachineConfig, RunConfig
from diptych.data.batch import Batch
from diptych.model.dual_encoder import DualEncoder, load_weights
from diptych.model.open_clip_config import open_clip_config
from diptych.model.open_clip_layout import from_open_clip
from diptych.training.engine import Engine
from diptych.training.step_stats import StepInFlight
from diptych.world import World, read_world

CPU = torch.device("cpu")
CONFIGS = Path(__file__).parents[2] / "configs"
VOCABULARY = 49408
MEDIAN_TOKENS, SPREAD = 17.5, 0.5
"""Lengths of captions: the logarithm of their number of tokens is normally distributed, mean about 20 tokens."""
SMALL_MODEL = (
    "model.embed_dim=32",
    "model.image.image_size=32",
    "model.image.overrides={patch_size: 8, embed_dim: 32, depth: 2, num_heads: 2}",
    "model.text={context_length: 77, width: 32, heads: 2, layers: 2, activation: quick_gelu}",
)


@dataclass(frozen=True)
class Scale:
    """The sizes of all measurements."""

    pairs: dict[str, int]
    """Recipe whose towers are timed → a batch size that also fits into memory with open_clip."""
    pairs_of_checks: int
    steps_of_checks: int
    timed_steps: int
    loss_batches: dict[str, int]
    largest: int
    """Pairs at which the search for the largest batch starts."""
    most: int
    """Pairs at which it ends."""
    in_parts: tuple[int, int]
    """Pairs of a batch, and of each of its parts."""
    loader_pairs: int
    loader_steps: int
    pictures: int
    peer_backend: str = "inductor"
    """The backend of `torch.compile` for the peer's model."""
    overrides: tuple[str, ...] = ()
    """Overrides of every recipe."""


FULL = Scale(
    pairs={"vit_b_32": 1024, "vit_l_14": 256, "vit_b_16": 512},
    pairs_of_checks=32,
    steps_of_checks=20,
    timed_steps=15,
    loss_batches={"8k": 8192, "32k": 32768, "64k": 65536},
    largest=128,
    most=16384,
    in_parts=(8192, 512),
    loader_pairs=1024,
    loader_steps=60,
    pictures=4096,
)
TINY = Scale(
    pairs={"vit_b_32": 8},
    pairs_of_checks=8,
    steps_of_checks=4,
    timed_steps=2,
    loss_batches={"8k": 64, "32k": 128, "64k": 192},
    largest=8,
    most=16,
    in_parts=(16, 4),
    loader_pairs=8,
    loader_steps=3,
    pictures=24,
    peer_backend="eager",
    overrides=SMALL_MODEL,
)


def world() -> World:
    """A single rank, on the GPU if there is one."""
    return replace(read_world(), rank=0, size=1)


def recipe(name: str, scale: Scale, pairs: int, precision: str = "bf16", **machine: Any) -> RunConfig:
    """A recipe from `configs/` with another batch size, and a schedule that is far from its end."""
    overrides = ["run_dir=none", "data.train=none", "model.initial_weights=null", *scale.overrides]
    config = load_config([CONFIGS / f"{name}.yaml"], overrides).config
    return replace(
        config,
        training=replace(
            config.training, total_samples=10_000 * pairs, global_batch_size=pairs, precision=precision, ema_decay=None
        ),
        optimizer=replace(config.optimizer, warmup_samples=100 * pairs),
        machine=MachineConfig(**machine),
    )


def peer_model(config: RunConfig, device: torch.device) -> open_clip.CLIP:
    """open_clip's model with the same sizes; its weights depend only on the kind of device on which it is made."""
    torch.manual_seed(0)
    described = open_clip_config(config.model, VOCABULARY)["model_cfg"]
    with device:
        return open_clip.CLIP(
            described["embed_dim"],
            described["vision_cfg"],
            described["text_cfg"],
            quick_gelu=described.get("quick_gelu", False),
        )


def our_engine(config: RunConfig, place: World, device: torch.device | None = None) -> Engine:
    """Our engine with the weights of the peer's model as made on `device` (by default the engine's own)."""
    training, device = config.training, device or place.device
    peer = peer_model(config, device)
    with device:
        model = DualEncoder(config.model, VOCABULARY, training.initial_logit_scale, training.initial_logit_bias)
    load_weights(model, from_open_clip(peer.state_dict(), config.model))
    return Engine(model, config, place)


def make_batch(config: RunConfig, place: World, seed: int = 0) -> Batch:
    """A batch of noise pictures, and captions of `<start>`, random tokens and `<end>`; in pinned memory for a GPU."""
    pairs, size = config.training.global_batch_size, config.model.image.image_size
    context = config.model.text.context_length
    random = np.random.default_rng(seed)
    images = torch.randint(
        0, 256, (pairs, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )
    lengths = np.clip(np.exp(random.normal(np.log(MEDIAN_TOKENS), SPREAD, pairs)).round(), 3, context).astype(np.int32)
    tokens = random.integers(1, VOCABULARY - 2, (pairs, context), dtype=np.int32)
    tokens[:, 0], tokens[np.arange(pairs), lengths - 1] = VOCABULARY - 2, VOCABULARY - 1
    tokens[np.arange(context) >= lengths[:, None]] = 0
    batch = Batch(images, torch.from_numpy(tokens), torch.from_numpy(lengths), np.arange(pairs))
    pinned = Batch.joined([batch], len(batch), pin_memory=place.device.type == "cuda")
    assert pinned is not None
    return pinned


def take_steps(engine: Engine, batches: list[Batch], first: int = 0) -> list[StepInFlight]:
    return [engine.step(batch, (first + number) * len(batch)) for number, batch in enumerate(batches)]


def seconds_a_step(step: Callable[[int], object], count: int, place: World, warm_up: int = 3) -> float:
    """The mean time of `count` steps in a row, after some steps of warm-up."""
    for number in range(warm_up):
        step(number)
    synchronize(place)
    began = time.perf_counter()
    for number in range(warm_up, warm_up + count):
        step(number)
    synchronize(place)
    return (time.perf_counter() - began) / count


def synchronize(place: World) -> None:
    if place.device.type == "cuda":
        torch.cuda.synchronize(place.device)


def start_memory(place: World) -> None:
    """Free unused memory, and start to record the peak."""
    gc.collect()
    if place.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(place.device)


def peak_gib(place: World) -> float | None:
    """The peak of allocated memory since `start_memory`; None on a CPU."""
    if place.device.type != "cuda":
        return None
    return round(torch.cuda.max_memory_allocated(place.device) / 2**30, 3)
