"""The configuration of a run, as frozen dataclasses: equal configs give equal runs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal, cast

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, kw_only=True)
class ImageTowerConfig:
    """A timm model and the size of the square pictures that it takes."""

    name: str = "vit_base_patch32_clip_quickgelu_224"
    """The name of a timm model without its tag: towers start from random weights."""
    image_size: int = 224
    """Height and width of a picture in pixels."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Keywords for `timm.create_model`, so that any size of a model family can be described in YAML.

    `patch_drop_rate: 0.5` leaves out half of each picture's patches in training (FLIP, arXiv 2212.00794).
    """
    mean: tuple[float, float, float] = CLIP_MEAN
    """Means of red, green and blue, between 0 and 1; the tower receives (value - mean) / std."""
    std: tuple[float, float, float] = CLIP_STD
    resize_mode: Literal["shortest", "longest", "squash"] = "shortest"
    """How a picture becomes a square in evaluation, and in training with `data.augmentation: none`. shortest: the
    shorter side is resized to image_size and the middle is cropped; longest: the longer side is, and what is missing is
    filled; squash: both sides are."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    """How pictures are resized, in evaluation and training; both are antialiased."""
    fill_colour: tuple[int, int, int] = (0, 0, 0)
    """Red, green and blue, 0 to 255, of what is filled with `resize_mode: longest`."""
    initial_weights: str | None = None
    """Trained weights that this tower alone starts from, while the text tower starts from random ones (LiT): a model
    folder or run with any text tower, which also describes this tower; or a safetensors file, or folder of Hugging
    Face's hub, of the timm model `name`, whose mean and std then belong here. A projection that they do not have, or
    one to another embed_dim, starts from random values: then freeze `image.trunk.*`, else `image.*`. null: random."""


@dataclass(frozen=True, kw_only=True)
class TextTowerConfig:
    """The paper's causal transformer (section 2.4)."""

    context_length: int = 77
    """Tokens of a caption, with start and end; longer captions are cut."""
    width: int = 512
    heads: int = 8
    layers: int = 12
    activation: Literal["gelu", "quick_gelu"] = "quick_gelu"


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The two towers, and the weights that they start from."""

    embed_dim: int = 512
    """Length of an embedding, of a picture or a text."""
    image: ImageTowerConfig = field(default_factory=ImageTowerConfig)
    text: TextTowerConfig = field(default_factory=TextTowerConfig)
    initial_weights: str | None = None
    """A model folder to start from (the paper's L/14@336 continues L/14); null: random weights, as in the paper. For
    the image tower alone set model.image.initial_weights."""
    freeze: tuple[str, ...] = ()
    """Patterns of names, as a shell's, of tensors that training leaves as they are, bit by bit: `["image.*"]` trains
    only the text tower (LiT, arXiv 2111.07991). Weight decay does not touch them, and they need no memory for gradients
    and optimizer. The running statistics of batch normalisation are frozen, and used as in evaluation, if their own
    names match. A model folder's `model.safetensors` has the names."""


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """How captions become tokens."""

    vocabulary: str = "clip"
    """`clip`: CLIP's 49,408 tokens, from the installed open_clip_torch; or the path of a vocabulary file."""


@dataclass(frozen=True, kw_only=True)
class RandomResizedCropConfig:
    """The crop of `data.augmentation: random_resized_crop`; the defaults are open_clip's."""

    scale: tuple[float, float] = (0.9, 1.0)
    """Smallest and largest share of the picture's area."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest width divided by height."""


@dataclass(frozen=True, kw_only=True)
class ColourJitterConfig:
    """Random changes of the colours, as torchvision's ColorJitter: without an amount above 0, none."""

    probability: float = 1.0
    """Share of the pictures whose colours change."""
    brightness: float = 0.0
    """0.4: the brightness is multiplied by 0.6 to 1.4; contrast and saturation likewise."""
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    """0.1: the hue is turned by up to a tenth of the colour circle, in either direction; at most 0.5."""


@dataclass(frozen=True, kw_only=True)
class RandomErasingConfig:
    """Random rectangles are filled with noise (arXiv 1708.04896)."""

    probability: float = 0.0
    """Share of the pictures in which something is erased."""
    scale: tuple[float, float] = (0.02, 0.33)
    """Smallest and largest share of the area that is erased."""
    ratio: tuple[float, float] = (0.3, 3.3)
    """Smallest and largest height of a rectangle divided by its width."""
    max_rectangles: int = 1
    """1 to this many rectangles share the area."""


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """Where shards at addresses such as `s3://bucket/shards` are kept on each machine."""

    folder: str | None = None
    """A folder of a disk of the machine, which all its ranks share; null: `diptych/shards` in XDG_CACHE_HOME, or else
    in ~/.cache."""
    bytes: int | None = None
    """The most that it may take, such as 2e12; null: half of the disk's free space. With fewer bytes than the data,
    the shards that were used longest ago are deleted and fetched again when they are needed."""


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One source of a mixture: `data: {train: [{shards: a, weight: 3}, {shards: b, weight: 1}]}`."""

    shards: str | tuple[str, ...]
    weight: float | None = None
    """How many samples are drawn from it, relative to the other sources; all sources have a weight, or none has.

    Each batch has these proportions. A source that is used up starts again, so a small one is seen more often than
    others, but no sample twice in one pass over the source. Without weights each sample is seen once an epoch.
    `metrics.jsonl` then has `epoch`; with weights it has `epochs_of_SOURCE` for each source, since they differ.
    """
    captions: dict[str, float] | None = None
    """Where captions come from: field → probability, such as {caption: 0.7, alt: 0.3}. A field is `txt` or a key of a
    sample's `.json`; of a list of captions one is drawn. Fields that a sample lacks are left out. null: the `.txt`, or
    `caption` of the `.json`, and if the `.json` has a list `captions` that starts with it, one of them."""


@dataclass(frozen=True, kw_only=True)
class GroupsConfig:
    """Batches drawn from groups of samples that are alike, which `diptych cluster` writes.

    They replace shuffle_window and streams. A batch then reads samples from anywhere in the shards, so these should lie
    on a disk of the machine, or fit into data.cache.
    """

    file: str | None = None
    """The group of each sample, as `diptych cluster` writes it; null: no groups."""
    power: float = 1.0
    """From 0 to 1: groups are drawn in proportion to n ** power, where n is the number of their samples. 1: each sample
    once an epoch; 0: all groups equally often; 0.5 lies between. The number of samples in an epoch stays the same."""
    neighbours: int = 1
    """How many samples of one group, or of groups that are alike, are put together in a batch as hard negatives of
    one another; 1: they are shuffled like others."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The data to train on, and how samples are shuffled, augmented and rejected."""

    train: str | tuple[str, ...] | tuple[SourceConfig, ...]
    """Shard folders, tar files or brace patterns (`shards/{00000..00099}.tar`), on a disk or at an address that fsspec
    reads: s3://, gs://, hf://, https://. Endpoint and credentials of a store are where fsspec finds them: in the
    environment (`AWS_ENDPOINT_URL`, `AWS_PROFILE`, `GOOGLE_APPLICATION_CREDENTIALS`, `HF_TOKEN`, `FSSPEC_S3_…`) or in
    fsspec's configuration files.

    Or a list of sources, each with `shards` and, as it needs them, `weight` (how many samples are drawn from it,
    relative to the others) and `captions` (field → probability): `[{shards: a, weight: 3, captions: {caption: 0.7,
    alt: 0.3}}, {shards: b, weight: 1}]`."""
    cache: CacheConfig = field(default_factory=CacheConfig)
    shuffle_window: int = 10_000
    """Samples are shuffled within windows of this many consecutive samples."""
    streams: int | None = None
    """From how many places of the data the rows of a batch are read at a time; null: as many as it has rows, which
    mixes shards as a uniform shuffle does. A rank reads about as many shards at a time as it has streams, each an open
    tar and an open index file in each loader process, and for shards that are elsewhere a place in data.cache. With few
    ranks, a slow disk or a cache smaller than the data, a number such as 256 lets each rank read fewer."""
    unique_captions_in_batch: bool = False
    """Exchange samples among 16 neighbouring batches until no batch has a caption twice, as far as that is possible:
    pairs with one caption are negatives of one another by mistake. Captions are the .txt of samples, compared byte by
    byte. Each sample is still seen once an epoch. A sample that replaces a rejected one is not looked at: it may have a
    caption that its batch has already. A caption with more than 16 copies in 16 batches stays more than once in some.
    Each loader process of each rank plans and arranges all 16 batches by itself, once every 16 batches: with batches of
    32,768 that takes 0.2 to 0.4 seconds of its time, and 0.7 if captions come about 16 times in these batches."""
    groups: GroupsConfig = field(default_factory=GroupsConfig)
    augmentation: Literal["random_square_crop", "random_resized_crop", "none"] = "random_square_crop"
    """Which part of a picture is trained on. random_square_crop: a square as large as the shorter side, the paper's
    only augmentation (section 2.3); random_resized_crop: a rectangle, open_clip's; none: what evaluation takes, by
    model.image.resize_mode."""
    random_resized_crop: RandomResizedCropConfig = field(default_factory=RandomResizedCropConfig)
    horizontal_flip_probability: float = 0.0
    """Share of the pictures that are mirrored; captions such as "a car on the left" then become wrong."""
    colour_jitter: ColourJitterConfig = field(default_factory=ColourJitterConfig)
    grey_probability: float = 0.0
    """Share of the pictures that become grey."""
    random_erasing: RandomErasingConfig = field(default_factory=RandomErasingConfig)
    max_rejected_fraction: float = 0.01
    """If a larger share of the samples is rejected, the run stops and prints the reasons."""

    @property
    def sources(self) -> tuple[SourceConfig, ...]:
        """The sources of `train`; locations without weights are one source."""
        sources = [source for source in self.train if isinstance(source, SourceConfig)]
        if sources:
            return tuple(sources)
        return (SourceConfig(shards=cast("str | tuple[str, ...]", self.train)),)

    @property
    def mixing(self) -> tuple[tuple[float | None, dict[str, float] | None], ...]:
        """Weight and captions of each source; empty if there are none, so that only the shards matter."""
        mixing = tuple((source.weight, source.captions) for source in self.sources)
        return mixing if any(part != (None, None) for part in mixing) else ()


@dataclass(frozen=True, kw_only=True)
class TokenHeadConfig:
    """A second objective next to the contrast (SuperCLIP, arXiv 2512.14480): a linear layer predicts the tokens of the
    caption from the picture's feature before the projection.

    The loss is the cross-entropy of its softmax over the vocabulary with the set of the caption's tokens, each weighted
    by its inverse document frequency. Checkpoints have the layer in `token_head/`; the model in them does not have it.
    """

    weight: float = 0.0
    """The factor on this loss, which is added to the contrast; SuperCLIP's is 1. 0: there is no such layer."""


@dataclass(frozen=True, kw_only=True)
class NgramsConfig:
    """The dictionary of `loss.name: visual_ngrams`, and its smoothing."""

    longest: int = 5
    """Tokens of the longest n-grams."""
    min_count: int = 10
    """How often an n-gram must occur in the counted captions; every single token is in the dictionary."""
    smoothing: float = 0.2
    """The share of the longer n-gram when its probability is mixed with that of the shorter one."""


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The loss that is minimised."""

    name: str = "softmax"
    """softmax: each pair of the global batch is classified against all others (paper, section 2.3); sigmoid: each
    picture with each caption is a yes-or-no question of its own (SigLIP, arXiv 2303.15343).

    bag_of_words and visual_ngrams are the baselines that the paper compares with (section 2.3): one linear layer on the
    picture's feature predicts which tokens the caption has, or its words one after another from a dictionary of n-grams
    (Li et al. 2017). These models have no text tower, so they can be measured by zero-shot classification and linear
    probes only. Of `model.text` they use the context length alone."""
    duplicates: Literal["negatives", "positives"] = "negatives"
    """Whether pairs with the same caption in a batch count as negatives of one another, as in the paper, or positives.

    It matters in crawls whose captions repeat. It changes what the sigmoid loss learns, and what the accuracies count;
    the softmax loss learns the same either way, since equal captions have equal embeddings.
    """
    token_head: TokenHeadConfig = field(default_factory=TokenHeadConfig)
    counted_captions: int = 100_000
    """In how many captions tokens and n-grams are counted, before the first step: those of the first samples of each
    source of data.train, by its share of all samples. The counts are kept in the run directory."""
    ngrams: NgramsConfig = field(default_factory=NgramsConfig)

    @property
    def predicts_words(self) -> bool:
        """Whether a model without a text tower is trained."""
        return self.name in ("bag_of_words", "visual_ngrams")

    @property
    def has_token_head(self) -> bool:
        return self.token_head.weight > 0


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW and the cosine schedule with linear warm-up (paper, section 2.5 and table 18), or others."""

    name: Literal["adamw", "muon"] = "adamw"
    """adamw: the paper's; muon: the matrices inside the blocks of both towers are updated by their orthogonalised
    momentum (Muon, momentum 0.95), at twice `learning_rate` and scaled as AdamW's updates are (arXiv 2502.16982); AdamW
    updates embeddings, gains, biases, projections and logit_scale. It needs half of AdamW's memory for the matrices."""
    learning_rate: float = 5e-4
    """The highest learning rate, at the end of the warm-up."""
    weight_decay: float = 0.2
    """Applied to weights with two or more dimensions."""
    beta1: float = 0.9
    beta2: float = 0.98
    epsilon: float = 1e-6
    warmup_samples: int = 0
    """Number of samples over which the learning rate rises from 0."""
    schedule: Literal["cosine", "wsd", "rsqrt"] = "cosine"
    """How the learning rate falls after the warm-up. cosine: along half a cosine to 0; wsd (warmup, stable, decay): it
    stays, and falls to 0 in the cool-down; rsqrt: as sqrt(warmup_samples / samples_seen), as ViTs were trained (arXiv
    2106.04560), and to 0 in the cool-down. With wsd and rsqrt nothing before the cool-down depends on the length of the
    run, so one long run without a cool-down can end in several lengths: see `initial_checkpoint`."""
    cooldown_samples: int = 0
    """Number of samples at the end of the run over which wsd and rsqrt let the learning rate fall to 0, as 1 - sqrt(the
    share of the cool-down that has passed), which ends better than a straight line (arXiv 2405.18392)."""
    groups: dict[str, dict[str, float]] = field(default_factory=dict)
    """Settings for the parameters whose names match a pattern, as a shell's: `{"image.*": {learning_rate_scale: 0.1},
    "*.text_projection": {weight_decay: 0.0}}`. `learning_rate_scale` multiplies their learning rate; `weight_decay`
    replaces the one above, where it applies. If several patterns match a parameter, the last one that sets a value
    decides."""
    layer_decay: float | None = None
    """Multiply the learning rate by this for each layer below the last, as in BEiT and timm, for towers that start from
    trained weights: 0.75 for example. In each tower the embeddings are layer 0, its blocks layers 1, 2, …, and what
    comes after the blocks, up to the projection, the last layer, which has the full rate. null: equal rates."""
    gradient_clip_norm: float | None = 1.0
    """Gradients with a larger norm are scaled down to this norm; null: no clipping."""
    moments: Literal["fp32", "bf16"] = "fp32"
    """The precision of the optimizer's moments: bf16 takes half the memory (AdamW's take 4 bytes a parameter instead of
    8), as the paper's half-precision moments do, and rounds them at each step."""


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """A part of the run: `training: {stages: [{samples: 9e6, image_size: 112}, {}]}`."""

    samples: int | None = None
    """How many samples it has; null, in the last stage only: the rest of training.total_samples."""
    image_size: int | None = None
    """Height and width of a picture in pixels; null: model.image.image_size."""
    context_length: int | None = None
    """Tokens of a caption, with start and end; longer captions are cut. null: model.text.context_length."""
    patch_dropout: float | None = None
    """Share of each picture's patches that is left out; null: `patch_drop_rate` of model.image.overrides, or none."""
    learning_rate_scale: float = 1.0
    """Factor on the learning rate, whose schedule goes on over all samples of the run. In a short last stage a cosine
    is nearly 0, and a factor such as 10 lets it learn."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Length of the run, batch size, precision, and start values."""

    total_samples: int
    """Epochs x the samples of data.train; 2000000 may be written as 2e6."""
    global_batch_size: int
    """Pairs in a batch over all ranks together; each is a negative for the others."""
    stages: tuple[StageConfig, ...] | None = None
    """Parts of the run, most of which are cheaper than the model that comes out (CLIPA, arXiv 2305.07017): a list such
    as `[{samples: 9e6, image_size: 112, context_length: 32}, {learning_rate_scale: 0.5}]`.

    Each has, as it needs them, `samples` (in the last stage the rest if left out), `image_size`, `context_length`,
    `patch_dropout` (share of each picture's patches that is left out) and `learning_rate_scale`. Sizes that a stage
    does not set are those of `model`, as those of the last stage must be. A batch belongs to the stage of its first
    sample. Position embeddings are resampled for pictures of another size, and JPEGs are decoded at 1/2, 1/4 or 1/8
    where that is still as large as needed. Checkpoints and evaluations have the model's sizes in every stage. null:
    none."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 on a GPU that supports it, else fp32; a resumed run keeps the precision it was started with. bf16
    means fp32 parameters with autocast."""
    initial_logit_scale: float = math.log(1 / 0.07)
    """Natural logarithm of the factor on the cosines at the start; it is learned."""
    initial_logit_bias: float | None = None
    """The bias of the sigmoid loss at the start. That loss starts from SigLIP's values (scale ln 10, bias -10) unless
    set otherwise; the softmax loss has no bias."""
    max_logit_scale: float = math.log(100)
    """The largest value that the learned logit scale may take."""
    ema_decay: float | None = None
    """Keep an exponential moving average of the weights; each step keeps this share of it, such as 0.9999. It is saved
    with the weights, for `diptych evaluate --ema`. null: no average."""
    seed: int = 0
    """Seed of weights, order and augmentation; equal seeds give equal runs."""


SIGLIP_START = {"initial_logit_scale": math.log(10), "initial_logit_bias": -10.0}
"""Start values from arXiv 2303.15343, section 3.2. Most pairs of a batch are negatives; with this bias the model
predicts that from the first step."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When the run is saved.

    Training stops only while each rank copies its share to host memory, which takes as much memory as the share: the
    rank's part of moments and averages, and on rank 0 the weights. A process of each rank writes the copy meanwhile.
    """

    every_samples: int | None = None
    """Samples between two checkpoints; null: a tenth of the run."""
    keep: int = 3
    """Number of newest valid checkpoints that are kept; at least 2."""
    max_wait_seconds: int = 3600
    """How long training waits for a checkpoint that cannot be written, before the run ends. On a full disk the write is
    tried again meanwhile; on a disk that does not answer the wait is at least 60 seconds. Training goes on until the
    next checkpoint is due or the run is to stop, and only then waits."""
    roll_back_on_loss_spikes: bool = False
    """After ten steps in a row whose loss lies far above the losses before, go back to the newest good checkpoint and
    on with later samples. Such spikes are reported in any case; ten steps in a row that are not finite always go back.
    """


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What the model is measured on while it trains; nothing unless data are named.

    The ranks share the work, while training stands still. The numbers are those that `diptych evaluate` gives for the
    checkpoint of the same step. With `training.ema_decay` the averaged weights are measured too, under the names that
    `--ema` gives them: `unseen (EMA)/top1`. The numbers go to metrics.jsonl and the dashboards. If one cannot be
    measured, a line says why and training goes on. The training itself is the same as without. Each rank needs room on
    its device for another copy of the weights.
    """

    every_samples: int | None = None
    """Samples between two evaluations; null: as between two checkpoints, so that each checkpoint is measured."""
    zero_shot: dict[str, str] = field(default_factory=dict)
    """Name → pictures with labels, as for `diptych evaluate --zero-shot`: `{unseen: data/unseen}`."""
    classes: str | None = None
    """YAML file of class names and prompt templates for `zero_shot`; null: the labels of the pictures."""
    retrieval: dict[str, str] = field(default_factory=dict)
    """Name → pictures with captions, as for `diptych evaluate --retrieval`."""
    validation: str | None = None
    """Held-out pictures with captions, 256 or more, whose loss is measured with 255 negatives for each pair, so that
    runs with different batch sizes compare."""
    best: str | None = None
    """The number whose best checkpoint is kept in addition to the newest ones, such as `unseen/top1` or
    `validation/loss`; of checkpoints that were measured. null: the first of the first data set: of `zero_shot`, else of
    `retrieval`, else the validation loss."""


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Where the numbers of the run can be watched, in addition to its metrics.jsonl."""

    log_every_steps: int = 10
    wandb: Literal["auto", "online", "offline", "off"] = "auto"
    """auto: the mode in WANDB_MODE; if that is not set, online if there is an API key, else offline."""
    wandb_project: str | None = None
    """null, here and below: taken from wandb's environment variables; for the project the default is `diptych`."""
    wandb_entity: str | None = None
    wandb_name: str | None = None
    """null: WANDB_NAME, or else the name of the run directory."""
    wandb_group: str | None = None
    wandb_tags: tuple[str, ...] | None = None
    wandb_notes: str | None = None
    tensorboard: bool = False
    """Needs the extra `tensorboard`."""


@dataclass(frozen=True, kw_only=True)
class MachineConfig:
    """How the run is executed on this machine; no setting here changes the results beyond rounding."""

    loader_workers: int | Literal["auto"] = "auto"
    """Loader processes per rank; 0 loads in the training process. auto: with a GPU one less than the rank has CPUs, and
    at most 12; without a GPU 1, since training itself uses the CPUs."""
    pairs_per_forward: int | None = None
    """How many of a rank's pairs go through the towers at once; null: all. Fewer need less memory and a second forward.

    The gradient is the same, unless layers such as dropout draw random masks: then the value changes the run. (Patch
    dropout does not: its masks depend on each pair's place in the run.)
    """
    checkpoint_blocks: bool = False
    """Keep only the input of each tower block, and compute the block again in the backward: a fraction of the memory,
    for a third more computation."""
    compile_blocks: bool = False
    """Compile the blocks of both towers with `torch.compile`: takes minutes at the start, and makes steps on a GPU
    faster. Needs a C compiler, and a ZeRO stage below 3; blocks that cannot be compiled run uncompiled."""
    deterministic: bool = False
    """Use only kernels that give the same bits each time, for runs that must be repeated bit by bit. Costs some speed
    on CUDA."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """What is divided among ranks: the optimizer state (1), also gradients (2), also weights (3); 0: nothing. A single
    rank keeps everything."""
    gpu_memory_gib: float | None = None
    """Memory of each GPU that the run is meant for, such as 79 for an H100 of 80 GB, so that `--dry-run` on any machine
    that has the shards can check whether a rank fits, with precision `auto` as bf16; null: that of this machine's
    GPU."""
    offload_optimizer: bool = False
    """Keep the optimizer's state (moments, and another copy of the weights) in host memory and update it on the CPU,
    for runs on too few GPUs: saves 8 bytes a parameter, divided by the number of ranks, and makes steps slower."""
    stop_after: str | None = None
    """Save a checkpoint and stop after this time, such as 3h50m, so that a scheduler's limit interrupts nothing; null:
    never. It counts from the start of the process, or of torchrun if that starts it. Leave time for the start of the
    job, a step and a checkpoint."""
    process_group_timeout_seconds: int = 600
    """How long ranks wait until all have met, how long each of the first two steps may take, and how long all ranks
    together may do nothing while they start, measure the model, save or end. Doing nothing means that no rank's main
    thread uses processor time: it may hash checkpoints or embed pictures for hours, but a disk that does not answer for
    so long ends the run, as does a step that takes too long. A start, a measurement or an end that takes a
    hundred times as long ends the run too, however busy it is."""
    step_timeout_seconds: int = 90
    """How long a later step, or the wait for its batch, may take, if that is more than three times the shortest step.
    After that the stacks of all ranks are written to `stacks/` in run_dir, and the run ends with one line that names
    the ranks that hang. Shards at an address are waited for up to four minutes. Set it higher if a shared disk
    stalls for minutes."""
    deepspeed: dict[str, Any] = field(default_factory=dict)
    """Merged last into the generated DeepSpeed configuration; keys that other settings decide are refused."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    run_dir: str
    """The directory of the run; empty: runs/NAME, where NAME.yaml is the last config file."""
    initial_checkpoint: str | None = None
    """A checkpoint of another run to go on from, with its optimizer state and position in the data:
    `runs/trunk/checkpoints/step_00010000`. These settings may differ from those of the other run: `optimizer` except
    its name, training.total_samples (counted from the start of the other run), and what may change in a resumed run. So
    one long run with `optimizer.schedule: wsd` and no cool-down can end in several lengths, each in a run_dir and with
    a cool-down of its own; set checkpoint.keep of the long run so high that it keeps its checkpoints. null: start from
    the beginning. To take weights alone, set model.initial_weights instead; with this key it may only repeat what the
    other run has."""
    data: DataConfig
    training: TrainingConfig
    model: ModelConfig = field(default_factory=ModelConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    machine: MachineConfig = field(default_factory=MachineConfig)

    @property
    def samples_between_checkpoints(self) -> int:
        return self.checkpoint.every_samples or max(1, self.training.total_samples // 10)
