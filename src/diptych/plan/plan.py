"""Plan a run on paper, stage by stage: operations, memory, time, cores, money and accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from diptych.config.schema import RunConfig
from diptych.config.stages import PATCH_DROPOUT, config_of_stage, stages_of
from diptych.model.activations import activations
from diptych.model.dual_encoder import blocks_of_towers, trained_without_memory
from diptych.model.flops import TrainingFlops
from diptych.model.freezing import freeze
from diptych.plan.accuracy import Expected, expected_accuracy, gmac_of
from diptych.plan.gpus import Gpu
from diptych.plan.on_gpus import Assumptions, OnGpus, RunOnPaper
from diptych.training.muon import orthogonalisation_flops
from diptych.training.parameter_groups import count_parameters, hidden_matrices
from diptych.world import World


@dataclass(frozen=True)
class Plan:
    """A run, or one of its stages, on paper."""

    model: str
    stage: str | None
    """Which stage it is, and its sizes; None if the run has no stages."""
    gpu: Gpu
    num_parameters: int
    flops_of_sample: float
    """Floating point operations of the forward and backward of a pair."""
    num_tokens: float
    """Of its caption."""
    orthogonalisation_flops: int
    """Floating point operations of Muon's orthogonalisation in a step, which are not counted elsewhere; 0 for AdamW."""
    gmac: float
    """Billions of multiply-adds of a forward of a pair whose caption fills the context, which accuracies depend on."""
    total_samples: int
    global_batch_size: int
    zero_stage: int
    on_gpus: tuple[OnGpus, ...]
    accuracies: tuple[Expected, ...]
    """Empty if published runs say nothing about such a run."""

    @property
    def flops(self) -> float:
        """Floating point operations of all samples."""
        return self.flops_of_sample * self.total_samples


def make_plans(
    config: RunConfig, vocab_size: int, gpu: Gpu, numbers_of_gpus: Sequence[int], assumptions: Assumptions
) -> list[Plan]:
    """Plan a run on each of these numbers of GPUs: each of its stages, with the settings that the largest one needs.

    Raises:
        UserError: there are more GPUs than pairs in a batch.
    """
    for number in numbers_of_gpus:
        World(size=number).rows_of_ranks(config.training.global_batch_size)
    config = replace(config, machine=replace(config.machine, gpu_memory_gib=gpu.memory_gib))
    precision = "fp32" if config.training.precision == "fp32" else "bf16"
    shapes = trained_without_memory(config.model, vocab_size, config.loss)
    freeze(shapes, config.model.freeze)
    parameters = count_parameters(shapes, config.optimizer)
    matrices = set(hidden_matrices(shapes)) if config.optimizer.name == "muon" else set()
    of_muon = orthogonalisation_flops(each.shape for name, each in shapes.named_parameters() if name in matrices)
    num_blocks = len(blocks_of_towers(shapes))
    stages = stages_of(config)
    kept = [activations(stage.model, vocab_size, "cuda", precision, config.loss) for stage in stages]
    largest = max(range(len(stages)), key=lambda number: kept[number].of_pair)
    of_memory = config_of_stage(config, stages[largest]), kept[largest]
    is_plain = config.training.stages is None and _is_plain(config)
    plans = []
    for stage in stages:
        part = config_of_stage(config, stage)
        flops = TrainingFlops(stage.model, vocab_size, config.loss)
        context_length = stage.model.text.context_length
        num_tokens = min(assumptions.mean_tokens or context_length, context_length)
        paper = RunOnPaper(part, gpu, parameters, num_blocks, flops.of_pair(num_tokens), *of_memory, assumptions)
        gmac = gmac_of(flops.of_pair(context_length))
        plans.append(
            Plan(
                model=part.model.image.name,
                stage=str(stage) if config.training.stages else None,
                gpu=gpu,
                num_parameters=parameters.whole,
                flops_of_sample=paper.flops_of_sample,
                num_tokens=num_tokens,
                orthogonalisation_flops=of_muon,
                gmac=gmac,
                total_samples=part.training.total_samples,
                global_batch_size=part.training.global_batch_size,
                zero_stage=part.machine.zero_stage,
                on_gpus=tuple(paper.on(number) for number in numbers_of_gpus),
                accuracies=expected_accuracy(gmac, part.training.total_samples) if is_plain else (),
            )
        )
    return plans


def _is_plain(config: RunConfig) -> bool:
    """Whether the run is like those that were fitted: a contrast from random weights that sees whole pictures."""
    return (
        config.model.initial_weights is None
        and config.model.image.initial_weights is None
        and not config.model.freeze
        and not config.loss.predicts_words
        and not config.model.image.overrides.get(PATCH_DROPOUT)
    )
