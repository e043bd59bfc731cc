"""Everything that decides a run, as frozen dataclasses: equal configs give equal runs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, kw_only=True)
class ImageTowerConfig:
    """A timm model and the square picture it takes."""

    name: str = "vit_base_patch32_clip_quickgelu_224"
    image_size: int = 224
    overrides: dict[str, Any] = field(default_factory=dict)
    """Keywords for `timm.create_model`, so that any size of a family can be written in YAML."""
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD


@dataclass(frozen=True, kw_only=True)
class TextTowerConfig:
    """The paper's causal transformer (section 2.4)."""

    context_length: int = 77
    width: int = 512
    heads: int = 8
    layers: int = 12
    activation: Literal["gelu", "quick_gelu"] = "quick_gelu"


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    embed_dim: int = 512
    image: ImageTowerConfig = field(default_factory=ImageTowerConfig)
    text: TextTowerConfig = field(default_factory=TextTowerConfig)
    initial_weights: str | None = None
    """A model folder to start from (the paper's L/14@336 continues L/14); None: random, as in the paper."""


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    vocabulary: str = "clip"
    """`clip`: CLIP's 49,408 tokens, from the installed open_clip_torch; else the path of a vocabulary file."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    train: str | tuple[str, ...]
    """Shard folders, tar files or brace patterns (`shards/{00000..00099}.tar`)."""
    shuffle_window: int = 10_000
    """Each stream permutes within this many consecutive samples."""
    augmentation: Literal["random_square_crop", "random_resized_crop", "none"] = "random_square_crop"
    """The paper's only one (section 2.3); open_clip's scale 0.9-1; or the centre crop."""
    max_rejected_fraction: float = 0.01
    """Above this share of rejected samples the run stops with the table of reasons."""


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    name: str = "softmax"
    """A key of `diptych.loss.LOSSES`."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW and the cosine schedule with linear warm-up (paper, section 2.5 and table 18)."""

    learning_rate: float = 5e-4
    weight_decay: float = 0.2
    beta1: float = 0.9
    beta2: float = 0.98
    epsilon: float = 1e-6
    warmup_samples: int = 0
    gradient_clip_norm: float | None = 1.0


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    total_samples: int
    global_batch_size: int
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 means fp32 parameters with autocast."""
    initial_logit_scale: float = math.log(1 / 0.07)
    max_logit_scale: float = math.log(100)
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    every_samples: int | None = None
    """None: a tenth of the run."""
    keep: int = 3
    """Newest valid checkpoints that stay; at least 2."""


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    log_every_steps: int = 10
    wandb: Literal["auto", "online", "offline", "off"] = "auto"
    """auto: what WANDB_MODE says; without it online where a key is present, offline otherwise."""
    wandb_project: str | None = None
    """None, here and below: what wandb's own environment variables say; a project of theirs or `diptych`."""
    wandb_entity: str | None = None
    wandb_name: str | None = None
    """Without WANDB_NAME: the name of the run directory."""
    wandb_group: str | None = None
    wandb_tags: tuple[str, ...] | None = None
    wandb_notes: str | None = None
    tensorboard: bool = False
    """Needs the extra `tensorboard`."""


@dataclass(frozen=True, kw_only=True)
class MachineConfig:
    """How this machine carries the run out; no field here changes what is computed beyond rounding."""

    loader_workers: int = 1
    """Loader processes per rank; 0 loads in the training process."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    process_group_timeout_seconds: int = 600
    deepspeed: dict[str, Any] = field(default_factory=dict)
    """Merged last into the generated DeepSpeed JSON; keys that we own are refused."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    run_dir: str
    data: DataConfig
    training: TrainingConfig
    model: ModelConfig = field(default_factory=ModelConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    machine: MachineConfig = field(default_factory=MachineConfig)
