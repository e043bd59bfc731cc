"""The smallest model that has every kind of parameter, and batches for it that are the same in every process."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from diptych.config.schema import (
    DataConfig,
    ImageTowerConfig,
    LossConfig,
    MachineConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    SourceConfig,
    TextTowerConfig,
    TrackingConfig,
    TrainingConfig,
)
from diptych.data.batch import Batch
from diptych.data.mixture import Mixture
from diptych.data.order import SampleOrder
from diptych.data.shard_index_file import Shard
from diptych.data.shards import ShardIndex
from diptych.data.tokenizer import train_vocabulary
from diptych.run_dir import RunDir
from diptych.training.checkpoint import Progress
from diptych.training.engine import Engine
from diptych.training.job import Job
from diptych.training.metrics import Metrics
from diptych.world import World

PAIRS, CONTEXT, VOCABULARY, PIXELS = 12, 8, 100, 16
"""12 pairs can be divided over 1, 2, 3 and 4 ranks."""

MODEL = ModelConfig(
    embed_dim=16,
    image=ImageTowerConfig(
        name="vit_base_patch32_clip_224",
        image_size=PIXELS,
        overrides={"patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2},
    ),
    text=TextTowerConfig(context_length=CONTEXT, width=32, heads=2, layers=1),
)


Case = TypeVar("Case")


def at_night(*cases: Case) -> tuple[Case, ...]:
    """More cases of a test with NIGHTLY=1; else none."""
    return cases if os.environ.get("NIGHTLY") else ()


def tiny_config(
    *, stage: int = 0, loss: str = "softmax", rate: float = 1e-3, dropout: float = 0.0, **training: Any
) -> RunConfig:
    """20 steps, two of them warm-up, clipped to a norm that the first gradients exceed."""
    image = replace(MODEL.image, overrides={**MODEL.image.overrides, "proj_drop_rate": dropout})
    return RunConfig(
        run_dir="nowhere",
        data=DataConfig(train="nothing"),
        training=TrainingConfig(total_samples=20 * PAIRS, global_batch_size=PAIRS, **training),
        model=replace(MODEL, image=image),
        loss=LossConfig(name=loss),
        optimizer=OptimizerConfig(learning_rate=rate, warmup_samples=2 * PAIRS, gradient_clip_norm=0.5),
        machine=MachineConfig(zero_stage=stage),
    )


def global_batches(steps: int) -> list[Batch]:
    random = torch.Generator().manual_seed(0)
    return [
        Batch(
            torch.randint(0, 256, (PAIRS, 3, PIXELS, PIXELS), generator=random, dtype=torch.uint8),
            torch.randint(1, VOCABULARY, (PAIRS, CONTEXT), generator=random, dtype=torch.int32),
            torch.randint(3, CONTEXT + 1, (PAIRS,), generator=random, dtype=torch.int32),
            np.arange(PAIRS),
        )
        for _ in range(steps)
    ]


def tiny_job(folder: Path, config: RunConfig, world: World, engine: Engine) -> Job:
    """What a run works with, without data to load."""
    config, run = replace(config, tracking=TrackingConfig(wandb="off")), RunDir(folder)
    run.checkpoints.mkdir(parents=True, exist_ok=True)
    shards = [Shard(Path(f"{name}/0.tar"), size, 1, "00" * 32) for name, size in (("web", 9), ("books", 31))]
    mixture = Mixture(ShardIndex(shards), [SourceConfig(shards=str(shard.path)) for shard in shards], [1, 1])
    order = SampleOrder(np.array([40]), seed=0, global_batch_size=PAIRS, shuffle_window=10)
    tokenizer = train_vocabulary(["a caption"], 520)
    metrics = Metrics(run.metrics, config, samples_seen=0, tracker_id="x") if world.is_first else None
    return Job(config, run, world, mixture, order, tokenizer, engine, Progress(), metrics, (_ for _ in ()))


def rows_of(batch: Batch, rows: tuple[int, int]) -> Batch:
    start, stop = rows
    return Batch(*(column[start:stop] for column in (batch.images, batch.tokens, batch.lengths, batch.samples)))
