"""Check a configuration for settings that cannot work with any data, on any number of ranks and any machine."""

from __future__ import annotations

import math
from collections.abc import Iterator

from diptych.config.problem import Problem
from diptych.config.ranges import out_of_range
from diptych.config.schema import (
    ColourJitterConfig,
    DataConfig,
    GroupsConfig,
    OptimizerConfig,
    RandomErasingConfig,
    RandomResizedCropConfig,
    RunConfig,
)
from diptych.config.stage_rules import bad_stages
from diptych.terminal import counted

SETTINGS_OF_A_GROUP = ("learning_rate_scale", "weight_decay")
LARGEST_BF16_BETA = 1 - 2**-8
"""Above this value the share that a moment loses in a step, 1 - beta, can be less than rounding to bf16 adds back,
which is half the distance between two bf16 numbers."""
MANY_EPOCHS = 100
"""With more epochs than this a run mostly learns its data by heart; CLIP was trained for 32."""


def impossible(config: RunConfig) -> Iterator[Problem]:
    """Yield values that have the right type but cannot work."""
    yield from out_of_range(config)
    yield from _contradictions(config)
    yield from _without_effect(config.data)
    yield from _bad_mixture(config.data)
    yield from _bad_groups(config.data)
    yield from bad_stages(config)


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
