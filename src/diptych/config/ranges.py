"""Check that each value of a configuration lies in its range."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from diptych.config.problem import Problem
from diptych.config.schema import RunConfig
from diptych.config.values import config_to_dict, flatten, seconds_of


@dataclass(frozen=True)
class Range:
    expected: str
    """In words: `it must be …`."""
    contains: Callable[[Any], bool]
    keys: tuple[str, ...]


RANGES = (
    Range(
        "above 0",
        lambda value: value > 0,
        (
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
        ),
    ),
    Range(
        "0 or more",
        lambda value: value >= 0,
        (
            "loss.token_head.weight",
            "optimizer.weight_decay",
            "optimizer.warmup_samples",
            "optimizer.cooldown_samples",
            "checkpoint.max_wait_seconds",
            "machine.loader_workers",
            "data.colour_jitter.brightness",
            "data.colour_jitter.contrast",
            "data.colour_jitter.saturation",
        ),
    ),
    Range(
        "between 0 and 1",
        lambda value: 0 <= value <= 1,
        (
            "data.max_rejected_fraction",
            "data.horizontal_flip_probability",
            "data.colour_jitter.probability",
            "data.grey_probability",
            "data.groups.power",
            "data.random_erasing.probability",
        ),
    ),
    Range(
        "between 0 and 1",
        lambda value: 0 <= value < 1,
        ("optimizer.beta1", "optimizer.beta2", "training.ema_decay"),
    ),
    Range("above 0 and below 1", lambda value: 0 < value < 1, ("loss.ngrams.smoothing",)),
    Range("above 0 and at most 1", lambda value: 0 < value <= 1, ("optimizer.layer_decay",)),
    Range(
        "two numbers above 0 and up to 1, the smaller first",
        lambda share_of_area: 0 < share_of_area[0] <= share_of_area[1] <= 1,
        ("data.random_resized_crop.scale", "data.random_erasing.scale"),
    ),
    Range(
        "two numbers above 0, the smaller first",
        lambda ratio_of_sides: 0 < ratio_of_sides[0] <= ratio_of_sides[1] < math.inf,
        ("data.random_resized_crop.ratio", "data.random_erasing.ratio"),
    ),
    Range("between 0 and 0.5, half a turn", lambda hue: 0 <= hue <= 0.5, ("data.colour_jitter.hue",)),
    Range(
        "three numbers from 0 to 255",
        lambda colour: all(0 <= value <= 255 for value in colour),
        ("model.image.fill_colour",),
    ),
    Range(
        "at least 2: a single pair has no negatives and a loss of 0",
        lambda size: size != 1,
        ("training.global_batch_size",),
    ),
    Range("0 or more and below 2^63", lambda seed: 0 <= seed < 2**63, ("training.seed",)),
    Range("at least 3, for start, one token and end", lambda length: length >= 3, ("model.text.context_length",)),
    Range(
        "at least 2, so that the run can resume if the newest checkpoint is damaged",
        lambda number: number >= 2,
        ("checkpoint.keep",),
    ),
)


def out_of_range(config: RunConfig) -> Iterator[Problem]:
    """Yield each value outside its range; None and auto mean a default and are skipped."""
    for key, value in flatten(config_to_dict(config)):
        if value is None or value == "auto":
            continue
        for each in RANGES:
            if key in each.keys and not each.contains(value):
                yield key, f"{key} is {value}; it must be {each.expected}"
        if isinstance(value, float) and not math.isfinite(value):
            yield key, f"{key} is {value}; it must be a finite number"
    try:
        seconds_of(config.machine.stop_after or "1s")
    except ValueError as error:
        yield "machine.stop_after", f"machine.stop_after {error}"
