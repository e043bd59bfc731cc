"""Compare the model of trained weights with that of a configuration."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from diptych.config.schema import ModelConfig
from diptych.config.values import flatten
from diptych.model.dual_encoder import shapes_of, without_memory
from diptych.model.trunk import clip_transformer_shape


def differences(there: ModelConfig, here: ModelConfig) -> Iterator[str]:
    """A line for each setting with which the two compute something different.

    Picture sizes, and settings that only matter in training, are not compared.
    """
    towers = ("image.name", "image.overrides")
    left, right = (dict(flatten(dataclasses.asdict(config))) for config in (there, here))
    for key in dict.fromkeys([*left, *right]):
        free = key in ("initial_weights", "image.initial_weights", "freeze", "image.image_size") or key.startswith(
            towers
        )
        if not free and left.get(key) != right.get(key):
            yield f"model.{key} is {_shown(left.get(key))} there, {_shown(right.get(key))} here"
    yield from _tower_differences(there, here)


def _tower_differences(there: ModelConfig, here: ModelConfig) -> Iterator[str]:
    ours, theirs = here.image, there.image
    if ours.name == theirs.name and _computing(ours.overrides) == _computing(theirs.overrides):
        return
    # Different names and overrides may describe the same tower; compare it tensor by tensor, at one picture size.
    same_size = dataclasses.replace(here, image=dataclasses.replace(ours, image_size=theirs.image_size))
    models = [without_memory(config, 1) for config in (there, same_size)]
    kinds = [clip_transformer_shape(model.image.trunk) for model in models]
    if kinds[0] is not None and kinds[0] == kinds[1] and shapes_of(models[0].image) == shapes_of(models[1].image):
        return
    if ours.name != theirs.name:
        yield f"model.image.name is {theirs.name} there, {ours.name} here"
    if _computing(ours.overrides) != _computing(theirs.overrides):
        yield f"model.image.overrides is {dict(theirs.overrides)} there, {dict(ours.overrides)} here"


def _computing(overrides: dict[str, Any]) -> dict[str, Any]:
    """The overrides without dropout and stochastic depth, which do not change what trained weights compute."""
    return {key: value for key, value in overrides.items() if "drop" not in key}


def _shown(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
