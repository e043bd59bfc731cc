"""Check a configuration for values that are invalid with any data, on any number of ranks and any machine."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from diptych.config.schema import (
    ColourJitterConfig,
    DataConfig,
    GroupsConfig,
    OptimizerConfig,
    RandomErasingConfig,
    RandomResizedCropConfig,
    RunConfig,
    StageConfig,
    TrainingConfig,
)
from diptych.config.stages import batches_of_stages
from diptych.config.values import config_to_dict, flatten, seconds_of
from diptych.terminal import counted

Keys = str | tuple[str, ...]
Problem = tuple[Keys, str]
"""The key, or all keys that contradict one another, and the message."""

ABOVE_0 = (
    "training.total_samples",
    "training.global_batch_size",
    "data.shuffle_window",
    "data.streams",
    "data.groups.neighbours",
    "data.random_erasing.max_rectangles",
    "data.cache.bytes",
    "model.embed_dim",
    "model.image.image_size",
    "model.text.width",
    "model.text.heads",
    "model.text.layers",
    "loss.counted_captions",
    "loss.ngrams.longest",
    "loss.ngrams.min_count",
    "optimizer.learning_rate",
    "optimizer.epsilon",
    "optimizer.gradient_clip_norm",
    "checkpoint.every_samples",
    "evaluation.every_samples",
    "tracking.log_every_steps",
    "machine.gpu_memory_gib",
    "machine.pairs_per_forward",
    "machine.process_group_timeout_seconds",
    "machine.step_timeout_seconds",
)
AT_LEAST_0 = (
    "loss.token_head.weight",
    "optimizer.weight_decay",
    "optimizer.warmup_samples",
    "optimizer.cooldown_samples",
    "checkpoint.max_wait_seconds",
    "machine.loader_workers",
    "data.colour_jitter.brightness",
    "data.colour_jitter.contrast",
    "data.colour_jitter.saturation",
)
FROM_0_BELOW_1 = ("optimizer.beta1", "optimizer.beta2", "training.ema_decay")
FROM_0_TO_1 = (
    "data.max_rejected_fraction",
    "data.horizontal_flip_probability",
    "data.colour_jitter.probability",
    "data.grey_probability",
    "data.groups.power",
    "data.random_erasing.probability",
)
SHARES_OF_THE_AREA = ("data.random_resized_crop.scale", "data.random_erasing.scale")
RATIOS_OF_SIDES = ("data.random_resized_crop.ratio", "data.random_erasing.ratio")
SETTINGS_OF_A_GROUP = ("learning_rate_scale", "weight_decay")
LARGEST_BF16_BETA = 1 - 2**-8
"""Above this value the share that a moment loses in a step, 1 - beta, can be less than rounding to bf16 adds back,
which is half the distance between two bf16 numbers."""
MANY_EPOCHS = 100
"""With more epochs than this a run mostly learns its data by heart; CLIP was trained for 32."""


def impossible(config: RunConfig) -> Iterator[Problem]:
    """Yield values that have the right type but cannot work."""
    yield from _out_of_range(config)
    yield from _contradictions(config)
    yield from _without_effect(config.data)
    yield from _bad_mixture(config.data)
    yield from _bad_groups(config.data)
    yield from _bad_stages(config)


def doubtful(config: RunConfig, num_samples: int) -> Iterator[str]:
    """Yield a line for each setting that works but is rarely meant, given the number of samples."""
    training = config.training
    has_weights = any(source.weight is not None for source in config.data.sources)
    if training.global_batch_size > num_samples:
        yield (
            f"training.global_batch_size {training.global_batch_size} is more than the "
            f"{counted(num_samples, 'sample')} of "
            f"data.train, so every batch contains some of them several times, each as its own negative; set it to "
            f"{num_samples} or less"
        )
    # Sources with weights have each their own number of epochs, and a small one may have many on purpose.
    if (epochs := training.total_samples / max(num_samples, 1)) > MANY_EPOCHS and not has_weights:
        yield (
            f"training.total_samples {training.total_samples} is {epochs:,.0f} epochs of the "
            f"{counted(num_samples, 'sample')} of "
            f"data.train (CLIP had 32); {32 * num_samples} would be 32"
        )


def _out_of_range(config: RunConfig) -> Iterator[Problem]:
    """Yield each value outside its range; None and auto mean a default and are skipped."""
    values = dict(flatten(config_to_dict(config)))
    for key, value in values.items():
        if value is None or value == "auto":
            continue
        if key in ABOVE_0 and not value > 0:
            yield key, f"{key} is {value}; it must be above 0"
        if key in AT_LEAST_0 and not value >= 0:
            yield key, f"{key} is {value}; it must be 0 or more"
        if (key in FROM_0_BELOW_1 and not 0 <= value < 1) or (key in FROM_0_TO_1 and not 0 <= value <= 1):
            yield key, f"{key} is {value}; it must be between 0 and 1"
        if key in SHARES_OF_THE_AREA and not 0 < value[0] <= value[1] <= 1:
            yield key, f"{key} is {value}; it must be two numbers above 0 and up to 1, the smaller first"
        if key in RATIOS_OF_SIDES and not 0 < value[0] <= value[1] < math.inf:
            yield key, f"{key} is {value}; it must be two numbers above 0, the smaller first"
        if isinstance(value, float) and not math.isfinite(value):
            yield key, f"{key} is {value}; it must be a finite number"
    if config.training.global_batch_size == 1:
        yield (
            "training.global_batch_size",
            "training.global_batch_size is 1; it must be at least 2: a single pair has no negatives and a loss of 0",
        )
    if not 0 < config.loss.ngrams.smoothing < 1:
        yield (
            "loss.ngrams.smoothing",
            f"loss.ngrams.smoothing is {config.loss.ngrams.smoothing}; it must be above 0 and below 1",
        )
    fill = config.model.image.fill_colour
    if not all(0 <= value <= 255 for value in fill):
        yield (
            "model.image.fill_colour",
            f"model.image.fill_colour is {list(fill)}; it must be three numbers from 0 to 255",
        )
    if not 0 <= config.data.colour_jitter.hue <= 0.5:
        yield (
            "data.colour_jitter.hue",
            f"data.colour_jitter.hue is {config.data.colour_jitter.hue}; it must be between 0 and 0.5, half a turn",
        )
    if not 0 <= config.training.seed < 2**63:
        yield "training.seed", f"training.seed is {config.training.seed}; it must be 0 or more and below 2^63"
    length = config.model.text.context_length
    if length < 3:
        yield (
            "model.text.context_length",
            f"model.text.context_length is {length}; it must be at least 3, for start, one token and end",
        )
    try:
        seconds_of(config.machine.stop_after or "1s")
    except ValueError as error:
        yield "machine.stop_after", f"machine.stop_after {error}"
    if config.checkpoint.keep < 2:
        yield (
            "checkpoint.keep",
            f"checkpoint.keep is {config.checkpoint.keep}; it must be at least 2, so that the run can resume if the "
            f"newest checkpoint is damaged",
        )


def _bad_mixture(data: DataConfig) -> Iterator[Problem]:
    """Yield each weight and each probability of a caption that cannot be used."""
    for number, source in enumerate(data.sources):
        place, weight = f"data.train[{number}]", source.weight
        if weight is not None and not 0 < weight < math.inf:
            yield "data.train", f"{place}.weight is {weight}; it must be above 0"
        if source.captions is not None:
            total = sum(source.captions.values())
            if not all(0 < share <= 1 for share in source.captions.values()) or not math.isclose(total, 1):
                yield (
                    "data.train",
                    f"{place}.captions is {source.captions}; its probabilities must be above 0, and 1 in total",
                )
    if not data.train:
        yield "data.train", "data.train is empty; name a folder of shards"
    weights = [source.weight for source in data.sources]
    if None in weights and len(set(weights)) > 1:
        yield "data.train", f"data.train[{weights.index(None)}] has no weight, and others have; give all a weight"


def _bad_stages(config: RunConfig) -> Iterator[Problem]:
    """Yield each value of a stage that cannot be used, or else what is wrong with the samples of all."""
    stages, longest = config.training.stages, config.model.text.context_length
    if stages is None:
        return
    if not stages:
        yield "training.stages", "training.stages is empty; list at least one stage, or leave it out"
    faults = [fault for stage in enumerate(stages) for fault in _bad_values_of_stage(*stage, longest)]
    yield from (("training.stages", fault) for fault in faults)
    if stages and not faults:
        yield from _unequal_last_stage(stages[-1], config)
        yield from _wrong_number_of_samples(stages, config.training)


def _bad_values_of_stage(number: int, stage: StageConfig, longest: int) -> Iterator[str]:
    ranges = {
        "samples": (0, math.inf, "above 0"),
        "image_size": (0, math.inf, "above 0"),
        "context_length": (2, longest + 1, f"at least 3 and at most model.text.context_length, {longest}"),
        "patch_dropout": (-math.inf, 1, "at least 0 and below 1"),
        "learning_rate_scale": (0, math.inf, "above 0"),
    }
    for name, (above, below, expected) in ranges.items():
        value = getattr(stage, name)
        if value is not None and (not above < value < below or (name == "patch_dropout" and value < 0)):
            yield f"training.stages[{number}].{name} is {value}; it must be {expected}"


def _unequal_last_stage(last: StageConfig, config: RunConfig) -> Iterator[Problem]:
    """Yield each size of the last stage that differs from the model's."""
    image_size, context_length = config.model.image.image_size, config.model.text.context_length
    for name, value, of_model, key in (
        ("image_size", last.image_size, image_size, "model.image.image_size"),
        ("context_length", last.context_length, context_length, "model.text.context_length"),
    ):
        if value not in (None, of_model):
            yield (
                ("training.stages", key),
                f"training.stages: {name} of the last stage is {value}, and {key} is {of_model}; the last stage has "
                f"the model's sizes, so leave it out there, or set {key} to {value}",
            )


def _wrong_number_of_samples(stages: Sequence[StageConfig], training: TrainingConfig) -> Iterator[Problem]:
    """Yield what is wrong with the samples of the stages."""
    *earlier, last = (stage.samples for stage in stages)
    if None in earlier:
        yield (
            "training.stages",
            f"training.stages[{earlier.index(None)}].samples is not set; only the last stage may leave it out",
        )
        return
    keys, total = ("training.stages", "training.total_samples"), training.total_samples
    has = sum(samples or 0 for samples in (*earlier, last))
    if last is None and has >= total:
        yield (
            keys,
            f"training.stages have {has} samples before the last one, which leaves it none of training.total_samples "
            f"{total}; set that higher, or their samples lower",
        )
    elif last is not None and has != total:
        yield (
            keys,
            f"training.stages have {has} samples, and training.total_samples is {total}; set that to {has}, or leave "
            f"out samples in the last stage, which then has the rest",
        )
    elif (empty := next((n for n, batches in enumerate(batches_of_stages(training)) if not batches), None)) is not None:
        size = training.global_batch_size
        yield (
            ("training.stages", "training.global_batch_size"),
            f"training.stages[{empty}] has no batch: none of the batches of {size} (training.global_batch_size) begins "
            f"with one of its samples; give each stage {size} or more",
        )


def _contradictions(config: RunConfig) -> Iterator[Problem]:
    """Yield each pair of values that contradict each other."""
    training, text, warmup = config.training, config.model.text, config.optimizer.warmup_samples
    if min(text.heads, text.width) > 0 and text.width % text.heads:
        yield (
            ("model.text.width", "model.text.heads"),
            f"model.text.width {text.width} cannot be split over {text.heads} heads",
        )
    if training.initial_logit_scale > training.max_logit_scale:
        yield (
            ("training.initial_logit_scale", "training.max_logit_scale"),
            f"training.initial_logit_scale {training.initial_logit_scale:g} is above its maximum, "
            f"training.max_logit_scale {training.max_logit_scale:g}",
        )
    if (training.initial_logit_bias is None) == (config.loss.name == "sigmoid"):
        has = "a" if config.loss.name == "sigmoid" else "no"
        yield (
            ("training.initial_logit_bias", "loss.name"),
            f"training.initial_logit_bias is {training.initial_logit_bias}; the {config.loss.name} loss has {has} bias",
        )
    if config.model.initial_weights is not None and config.model.image.initial_weights is not None:
        yield (
            ("model.initial_weights", "model.image.initial_weights"),
            "model.initial_weights and model.image.initial_weights both name weights of the image tower; leave one of "
            "them out",
        )
    yield from _objective_contradictions(config)
    optimizer = config.optimizer
    for key, beta in (("optimizer.beta1", optimizer.beta1), ("optimizer.beta2", optimizer.beta2)):
        if optimizer.moments == "bf16" and LARGEST_BF16_BETA < beta < 1:
            yield (
                (key, "optimizer.moments"),
                f"{key} {beta:g}: a moment in bf16 (optimizer.moments) would never shrink, since rounding undoes the "
                f"{1 - beta:.2g} that it loses in a step; set {key} to {LARGEST_BF16_BETA:.2f} or less, or "
                f"optimizer.moments to fp32",
            )
    if 0 < training.total_samples < training.global_batch_size:
        yield (
            ("training.total_samples", "training.global_batch_size"),
            f"training.total_samples {training.total_samples} is less than one global batch of "
            f"{training.global_batch_size} (training.global_batch_size)",
        )
    if warmup >= training.total_samples > 0:
        yield (
            ("optimizer.warmup_samples", "training.total_samples"),
            f"optimizer.warmup_samples {warmup} is not below training.total_samples {training.total_samples}: the run "
            f"would end while warming up",
        )
    yield from _bad_schedule(optimizer, training.total_samples)
    yield from _bad_parameter_groups(optimizer)


def _bad_parameter_groups(optimizer: OptimizerConfig) -> Iterator[Problem]:
    """Yield each setting of a pattern that does not exist or is out of range."""
    for pattern, settings in optimizer.groups.items():
        for name, value in settings.items():
            said = f"optimizer.groups {pattern!r}: {name}"
            if name not in SETTINGS_OF_A_GROUP:
                yield "optimizer.groups", f"{said} is no setting of a pattern; known: {', '.join(SETTINGS_OF_A_GROUP)}"
            elif name == "learning_rate_scale" and not value > 0:
                yield "optimizer.groups", f"{said} is {value}; it must be above 0; model.freeze keeps parameters fixed"
            elif not value >= 0:
                yield "optimizer.groups", f"{said} is {value}; it must be 0 or more"
    if optimizer.layer_decay is not None and not 0 < optimizer.layer_decay <= 1:
        yield (
            "optimizer.layer_decay",
            f"optimizer.layer_decay is {optimizer.layer_decay}; it must be above 0 and at most 1",
        )


def _bad_schedule(optimizer: OptimizerConfig, total_samples: int) -> Iterator[Problem]:
    """Yield each contradiction among the settings of the learning rate's schedule."""
    schedule, warmup, cooldown = optimizer.schedule, optimizer.warmup_samples, optimizer.cooldown_samples
    if schedule == "cosine" and cooldown > 0:
        yield (
            ("optimizer.cooldown_samples", "optimizer.schedule"),
            f"optimizer.cooldown_samples {cooldown} has no effect with optimizer.schedule cosine, which reaches 0 at "
            f"the end by itself; leave it out, or set optimizer.schedule to wsd or rsqrt",
        )
    if schedule == "rsqrt" and warmup == 0:
        yield (
            ("optimizer.warmup_samples", "optimizer.schedule"),
            "optimizer.schedule rsqrt falls as sqrt(warmup_samples / samples_seen), and optimizer.warmup_samples is 0; "
            "set it above 0",
        )
    if schedule != "cosine" and warmup < total_samples < warmup + cooldown:
        yield (
            ("optimizer.cooldown_samples", "optimizer.warmup_samples", "training.total_samples"),
            f"optimizer.cooldown_samples {cooldown} and optimizer.warmup_samples {warmup} are more than "
            f"training.total_samples {total_samples}; the cool-down must begin after the warm-up",
        )


def _bad_groups(data: DataConfig) -> Iterator[Problem]:
    """Yield what cannot go together with groups, or with a batch of different captions."""
    groups, sources = data.groups, data.sources
    is_in_range = 0 <= groups.power <= 1 and groups.neighbours > 0
    if groups.file is None and is_in_range and groups != GroupsConfig():
        yield (
            "data.groups",
            "data.groups has no effect without data.groups.file; set it to what `diptych cluster` wrote",
        )
    if groups.file is not None and any(source.weight is not None for source in sources):
        yield (
            ("data.groups.file", "data.train"),
            "data.groups.file and the weights of data.train both say how often samples come; leave one of them out",
        )
    if groups.file is not None and data.streams is not None:
        yield (
            ("data.streams", "data.groups.file"),
            f"data.streams {data.streams} has no effect with data.groups.file, which draws samples from anywhere; "
            f"leave one of them out",
        )
    if data.unique_captions_in_batch and any(source.captions is not None for source in sources):
        yield (
            ("data.unique_captions_in_batch", "data.train"),
            "data.unique_captions_in_batch compares the .txt of samples, and a source of data.train has other "
            "captions; leave one of them out",
        )


def _objective_contradictions(config: RunConfig) -> Iterator[Problem]:
    """Yield what cannot go with a loss that predicts words, whose model has no text tower."""
    loss, name = config.loss, config.loss.name
    if not loss.predicts_words:
        return
    if loss.has_token_head:
        yield (
            ("loss.token_head.weight", "loss.name"),
            f"loss.token_head.weight is {loss.token_head.weight:g}: it adds to a contrast, and loss.name "
            f"{name} is none; leave it out, or set loss.name to softmax",
        )
    if loss.duplicates != "negatives":
        yield (
            ("loss.duplicates", "loss.name"),
            f"loss.duplicates has no effect with loss.name {name}, which compares no pairs; leave it out",
        )
    if config.model.initial_weights is not None:
        yield (
            ("model.initial_weights", "loss.name"),
            f"model.initial_weights is a dual encoder, and loss.name {name} trains a model without a "
            f"text tower; leave it out",
        )
    for key in ("retrieval", "validation"):
        if getattr(config.evaluation, key):
            yield (
                (f"evaluation.{key}", "loss.name"),
                f"evaluation.{key} needs embeddings of texts, which loss.name {name} does not train; "
                f"measure evaluation.zero_shot instead",
            )


def _without_effect(data: DataConfig) -> Iterator[Problem]:
    """Yield each augmentation that is described but switched off."""
    if data.augmentation != "random_resized_crop" and data.random_resized_crop != RandomResizedCropConfig():
        yield (
            ("data.random_resized_crop", "data.augmentation"),
            f"data.random_resized_crop has no effect with data.augmentation {data.augmentation}; "
            f"set data.augmentation to random_resized_crop",
        )
    jitter, erasing = data.colour_jitter, data.random_erasing
    if 0 <= jitter.probability < 1 and jitter == ColourJitterConfig(probability=jitter.probability):
        yield (
            "data.colour_jitter",
            "data.colour_jitter has no effect without brightness, contrast, saturation or hue; set one of them",
        )
    if erasing.probability == 0 and erasing.max_rectangles > 0 and erasing != RandomErasingConfig():
        yield (
            "data.random_erasing",
            "data.random_erasing has no effect with a probability of 0; set data.random_erasing.probability",
        )
