"""Check the stages of a run: their values, and their samples against those of the run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from diptych.config.problem import Problem
from diptych.config.schema import RunConfig, StageConfig, TrainingConfig
from diptych.config.stages import batches_of_stages


def bad_stages(config: RunConfig) -> Iterator[Problem]:
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
    rules: dict[str, tuple[Callable[[float], bool], str]] = {
        "samples": (lambda value: 0 < value < math.inf, "above 0"),
        "image_size": (lambda value: 0 < value < math.inf, "above 0"),
        "context_length": (
            lambda value: 3 <= value <= longest,
            f"at least 3 and at most model.text.context_length, {longest}",
        ),
        "patch_dropout": (lambda value: 0 <= value < 1, "at least 0 and below 1"),
        "learning_rate_scale": (lambda value: 0 < value < math.inf, "above 0"),
    }
    for name, (fits, expected) in rules.items():
        value = getattr(stage, name)
        if value is not None and not fits(value):
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
