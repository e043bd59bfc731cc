"""Compute on paper what a run needs: operations, memory, time and money."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from diptych.config.schema import RunConfig
from diptych.model.activations import activations
from diptych.model.dual_encoder import expected_shapes
from diptych.model.flops import TrainingFlops
from diptych.plan.gpus import Gpu
from diptych.plan.speed import RECOMPUTED, UTILISATIONS, Speed, speed
from diptych.training.memory import GIB, memory_of, what_would_fit
from diptych.world import World

SECONDS_OF_DAY = 86_400


@dataclass(frozen=True)
class PlanOfGpus:
    """A run on a number of GPUs."""

    num_gpus: int
    pairs: int
    """Of the largest rank."""
    memory_gib: float
    """Of a rank, without what CUDA itself takes."""
    too_large: str | None
    """What to change if a rank does not fit its GPU; None if it does."""
    speeds: Mapping[str, Speed]
    """For each of UTILISATIONS."""
    days: Mapping[str, float]


@dataclass(frozen=True)
class Plan:
    """A run on paper."""

    name: str
    gpu: Gpu
    num_parameters: int
    flops_of_sample: int
    """Floating point operations of a forward and backward of a pair whose caption fills the context."""
    total_samples: int
    global_batch_size: int
    by_gpus: tuple[PlanOfGpus, ...]


def make_plan(config: RunConfig, vocab_size: int, gpu: Gpu, numbers_of_gpus: Sequence[int]) -> Plan:
    """Plan a run on each of these numbers of GPUs.

    Raises:
        UserError: there are more GPUs than pairs in a batch.
    """
    model, training = config.model, config.training
    config = replace(config, machine=replace(config.machine, gpu_memory_gib=gpu.memory_gib))
    num_parameters = sum(math.prod(shape) for shape in expected_shapes(model, vocab_size).values())
    flops = TrainingFlops(model, vocab_size).of_pair(model.text.context_length)
    towers = activations(model, 1024, "cuda", "fp32" if training.precision == "fp32" else "bf16")
    plans = []
    for number in numbers_of_gpus:
        world = World(size=number, device=torch.device("cuda"), spans_machines=number > gpu.per_machine)
        memory = memory_of(config, world, num_parameters, towers)
        repeats = RECOMPUTED if config.machine.checkpoint_blocks else 1.0
        speeds = {
            name: speed(gpu, number, training.global_batch_size, flops, repeats, share)
            for name, share in UTILISATIONS.items()
        }
        plans.append(
            PlanOfGpus(
                number,
                max(world.rows_of_ranks(training.global_batch_size)),
                memory.total / GIB,
                what_would_fit(memory, gpu.memory_gib, config, world, num_parameters, towers),
                speeds,
                {
                    name: training.total_samples / each.samples_per_second / SECONDS_OF_DAY
                    for name, each in speeds.items()
                },
            )
        )
    return Plan(
        model.image.name, gpu, num_parameters, flops, training.total_samples, training.global_batch_size, tuple(plans)
    )
