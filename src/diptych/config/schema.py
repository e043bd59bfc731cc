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
    """A timm model without its tag: towers start at random."""
    image_size: int = 224
    """Pixels, height and width."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Keywords for `timm.create_model`, so that any size of a family can be written in YAML.

    `patch_drop_rate: 0.5` leaves out half of each picture's patches in training (FLIP, arXiv 2212.00794).
    """
    mean: tuple[float, float, float] = CLIP_MEAN
    """Of red, green and blue from 0 to 1; pixels are (value - mean) / std."""
    std: tuple[float, float, float] = CLIP_STD


@dataclass(frozen=True, kw_only=True)
class TextTowerConfig:
    """The paper's causal transformer (section 2.4)."""

    context_length: int = 77
    """Tokens of a caption, with start and end; what is longer is cut."""
    width: int = 512
    heads: int = 8
    layers: int = 12
    activation: Literal["gelu", "quick_gelu"] = "quick_gelu"


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The two towers, and where their weights come from."""

    embed_dim: int = 512
    """Numbers of an embedding, of pictures and texts alike."""
    image: ImageTowerConfig = field(default_factory=ImageTowerConfig)
    text: TextTowerConfig = field(default_factory=TextTowerConfig)
    initial_weights: str | None = None
    """A model folder to start from (the paper's L/14@336 continues L/14); null: random, as in the paper."""


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """How captions become tokens."""

    vocabulary: str = "clip"
    """`clip`: CLIP's 49,408 tokens, from the installed open_clip_torch; else the path of a vocabulary file."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is trained on, and how a batch is drawn from it."""

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
    """What is minimised."""

    name: str = "softmax"
    """softmax: each pair of the global batch against all others (paper, section 2.3); sigmoid: each two of it a yes or
    no of their own (SigLIP, arXiv 2303.15343)."""
    duplicates: Literal["negatives", "positives"] = "negatives"
    """What pairs of a batch with the same caption are to one another: negatives, as in the paper, or positives.

    For crawls whose captions repeat. It decides what the sigmoid loss learns and what the accuracies count; the softmax
    loss learns the same either way, since equal captions have equal embeddings.
    """


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW and the cosine schedule with linear warm-up (paper, section 2.5 and table 18)."""

    learning_rate: float = 5e-4
    """At its highest, after the warm-up."""
    weight_decay: float = 0.2
    """Of weights with two or more dimensions."""
    beta1: float = 0.9
    beta2: float = 0.98
    epsilon: float = 1e-6
    warmup_samples: int = 0
    """How many samples the learning rate takes to rise from 0."""
    gradient_clip_norm: float | None = 1.0
    """Gradients of a larger norm are scaled down to it; null: none are."""
    moments: Literal["fp32", "bf16"] = "fp32"
    """How AdamW's two moments are kept: bf16 takes 4 bytes a parameter instead of 8, as the paper's half-precision ones
    do, and rounds them at each step."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How long, in what batches, how precisely."""

    total_samples: int
    """Epochs x the samples of data.train; 2e6 may be written for 2000000."""
    global_batch_size: int
    """Pairs of a batch over all ranks together, each the others' negative."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 on a GPU that has it, else fp32; a run keeps what it was started with, wherever it goes on. bf16 means
    fp32 parameters with autocast."""
    initial_logit_scale: float = math.log(1 / 0.07)
    """Natural logarithm of what cosines are multiplied by; learned from here."""
    initial_logit_bias: float | None = None
    """Of the sigmoid loss, which starts from SigLIP's values: scale ln 10, bias -10; the softmax loss has no bias."""
    max_logit_scale: float = math.log(100)
    """At which it is held."""
    ema_decay: float | None = None
    """Keep an exponential moving average of the weights, of which each step leaves this share, such as 0.9999; it is
    saved with them, for `diptych evaluate --ema`. null: keep none."""
    seed: int = 0
    """Of weights, order and augmentation; equal seeds give equal runs."""


SIGLIP_START = {"initial_logit_scale": math.log(10), "initial_logit_bias": -10.0}
"""Of arXiv 2303.15343, section 3.2: most pairs of a batch are negatives, and nothing has to unlearn that."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When the run is saved."""

    every_samples: int | None = None
    """null: a tenth of the run."""
    keep: int = 3
    """Newest valid checkpoints that stay; at least 2."""
    max_wait_seconds: int = 3600
    """How long training waits for room on the disk where a checkpoint cannot be written, before the run ends."""


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Where the numbers of the run can be watched, besides its metrics.jsonl."""

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

    loader_workers: int | Literal["auto"] = "auto"
    """Loader processes per rank; 0 loads in the training process. auto: with a GPU as many as a rank has CPUs, less
    one, and at most 12; without a GPU 1, since training itself takes the CPUs."""
    pairs_per_forward: int | None = None
    """How many of a rank's pairs go through the towers at once; None: all. Fewer take less memory and a second forward.

    The gradient is the same, unless layers such as dropout draw random masks: then the value decides the run. (Those of
    patch dropout are keyed by each pair's place in the run.)
    """
    checkpoint_blocks: bool = False
    """Keep of each tower block only what goes in, and compute it again in the backward: a fraction of the memory, for a
    third more computing."""
    compile_blocks: bool = False
    """Pass the blocks of both towers through `torch.compile`: minutes at the start, faster steps on a GPU. Needs a C
    compiler, and a ZeRO stage below 3; blocks that cannot be compiled run as they are."""
    deterministic: bool = False
    """Kernels that give the same bits each time, where CUDA's fastest do not: for runs that must be repeated bit by
    bit. Costs some speed."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """On several ranks: optimizer state (1), gradients too (2), weights too (3) are shared out; 0, and alone: whole."""
    gpu_memory_gib: float | None = None
    """Of each GPU that the run is meant for, such as 79 for an H100 of 80 GB, so that `--dry-run` anywhere says whether
    a rank fits; null: of this machine's."""
    offload_optimizer: bool = False
    """Keep what the optimizer has (moments, and another copy of the weights) in the host's memory and let its cores
    update them, where GPUs are too few to share it out: 8 bytes less a parameter over the ranks, and a slower step."""
    process_group_timeout_seconds: int = 600
    """How long ranks wait for one another before the run ends."""
    deepspeed: dict[str, Any] = field(default_factory=dict)
    """Merged last into the generated DeepSpeed JSON; keys that we own are refused."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    run_dir: str
    """Where all of the run is kept; empty: runs/NAME, of the last file NAME.yaml."""
    data: DataConfig
    training: TrainingConfig
    model: ModelConfig = field(default_factory=ModelConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    machine: MachineConfig = field(default_factory=MachineConfig)
