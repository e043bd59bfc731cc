"""The stages of a run: which sizes each global batch has, from its number alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

from diptych.config.schema import ModelConfig, RunConfig, TrainingConfig
from diptych.terminal import counted

PATCH_DROPOUT = "patch_drop_rate"
"""timm's name in `model.image.overrides`."""


@dataclass(frozen=True)
class Stage:
    """A part of a run in which all batches have the same sizes; a run without stages is one."""

    number: int
    """Counted from 1."""
    batches: range
    """The numbers of its global batches."""
    model: ModelConfig
    """The model as if it were made for the sizes of this stage."""
    learning_rate_scale: float

    @property
    def patch_dropout(self) -> float:
        """Share of a picture's patches that is left out."""
        return float(self.model.image.overrides.get(PATCH_DROPOUT, 0.0))

    def __str__(self) -> str:
        dropout = f", patch dropout {self.patch_dropout:g}" if self.patch_dropout else ""
        rate = f", learning rate x {self.learning_rate_scale:g}" if self.learning_rate_scale != 1 else ""
        sizes = f"{self.model.image.image_size} pixels, {counted(self.model.text.context_length, 'token')}"
        return f"stage {self.number}: {sizes}{dropout}{rate}"


def stages_of(config: RunConfig) -> tuple[Stage, ...]:
    """The stages of a run, in their order."""
    training, model = config.training, config.model
    if training.stages is None:
        return (Stage(1, range(training.total_samples // training.global_batch_size), model, 1.0),)
    return tuple(
        Stage(
            number,
            batches,
            model_with(model, stage.image_size, stage.context_length, stage.patch_dropout),
            stage.learning_rate_scale,
        )
        for number, (stage, batches) in enumerate(zip(training.stages, batches_of_stages(training), strict=True), 1)
    )


def batches_of_stages(training: TrainingConfig) -> list[range]:
    """The numbers of each stage's batches: those of which the first sample belongs to the stage."""
    assert training.stages is not None
    size, last = training.global_batch_size, training.total_samples // training.global_batch_size
    ends = accumulate(stage.samples or 0 for stage in training.stages[:-1])
    edges = [0, *(min(-(-end // size), last) for end in ends), last]
    return [range(*edge) for edge in pairwise(edges)]


def stage_at(stages: Sequence[Stage], batch_number: int) -> Stage:
    """The stage that a global batch belongs to; the last one after the end of the run."""
    return next((stage for stage in stages if batch_number < stage.batches.stop), stages[-1])


def config_of_stage(config: RunConfig, stage: Stage) -> RunConfig:
    """The configuration of a run that would consist of this stage alone, for computations on paper."""
    if config.training.stages is None:
        return config
    samples = len(stage.batches) * config.training.global_batch_size
    return replace(config, model=stage.model, training=replace(config.training, total_samples=samples, stages=None))


def model_with(
    model: ModelConfig, image_size: int | None, context_length: int | None, patch_dropout: float | None
) -> ModelConfig:
    """The model for other sizes; None leaves a size as it is."""
    image, text = model.image, model.text
    if image_size is not None:
        image = replace(image, image_size=image_size)
    if patch_dropout is not None and patch_dropout != image.overrides.get(PATCH_DROPOUT, 0.0):
        image = replace(image, overrides={**image.overrides, PATCH_DROPOUT: patch_dropout})
    if context_length is not None:
        text = replace(text, context_length=context_length)
    return replace(model, image=image, text=text)
