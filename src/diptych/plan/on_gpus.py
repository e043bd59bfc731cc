"""Compute what a run needs on a number of GPUs: memory, time, cores and money."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from diptych.config.schema import RunConfig
from diptych.model.activations import Activations
from diptych.plan.communication import Communication, communication
from diptych.plan.failures import Saving, saving
from diptych.plan.gpus import Gpu
from diptych.plan.loading import Loading, loading
from diptych.plan.speed import LAUNCH_SECONDS_OF_BLOCK, REPEATED, UTILISATIONS, Speed, speed
from diptych.plan.start import Start, start
from diptych.training.accumulate import num_parts
from diptych.training.deepspeed_config import zero_stage
from diptych.training.memory import GIB, RESERVED_GIB, Memory, bytes_of_moments, largest_that, memory_of, ways_to_fit
from diptych.training.parameter_groups import ParameterCounts
from diptych.world import World

SECONDS_OF_DAY = 86_400
STAGES = (0, 1, 2, 3)

ByCase = Mapping[str, float]
"""A number for each of UTILISATIONS."""


@dataclass(frozen=True)
class Fitting:
    """What fits a GPU at a ZeRO stage."""

    stage: int
    memory_gib: float
    """Of a rank with the config's other settings, and RESERVED_GIB for CUDA itself."""
    most_pairs: int
    """Most pairs that fit the towers at once, a power of two or all of a rank; 0 if not even one does."""
    most_pairs_checkpointed: int
    """The same with checkpointed blocks."""


@dataclass(frozen=True)
class MemoryOfPairs:
    """The memory of a rank that processes so many pairs at once, in GiB, without and with checkpointed blocks."""

    pairs: int
    gib: float
    gib_checkpointed: float


@dataclass(frozen=True)
class OnGpus:
    """A run on a number of GPUs."""

    num_gpus: int
    pairs: int
    """Of a rank with most."""
    memory: Memory
    """With the config's settings."""
    settings: Mapping[str, Any] | None
    """Settings of `machine` to change so that a rank fits, which the rest is computed with; empty if it fits as it is;
    None if no setting suffices."""
    fittings: tuple[Fitting, ...]
    by_pairs: tuple[MemoryOfPairs, ...]
    """For powers of two up to `pairs`, at the config's ZeRO stage."""
    communication: Communication
    saving: Saving
    start: Start
    speeds: Mapping[str, Speed]
    """For each of UTILISATIONS; empty if the run does not fit."""
    loading: Mapping[str, Loading]
    """Of a machine."""
    days: ByCase
    """With the time that saves and failures take."""
    gpu_hours: ByCase
    cost: ByCase | None
    """None without a price."""


@dataclass(frozen=True)
class Assumptions:
    """What the user knows better than we do."""

    price: float | None = None
    """Of a GPU for an hour."""
    mean_tokens: float | None = None
    """Of a caption, with start and end; None: it fills the context, as in published numbers."""
    samples_per_core_second: float | None = None
    """Of the loader, as `diptych data stats` measures it."""


@dataclass(frozen=True)
class RunOnPaper:
    """A run whose number of GPUs is open."""

    config: RunConfig
    gpu: Gpu
    parameters: ParameterCounts
    num_blocks: int
    flops_of_sample: int
    largest: RunConfig
    """The stage that needs most memory, which decides the settings."""
    towers: Activations
    """Of that stage."""
    assumptions: Assumptions

    def on(self, num_gpus: int) -> OnGpus:
        """The run on this number of GPUs."""
        config, gpu = self.config, self.gpu
        world = World(size=num_gpus, device=torch.device("cuda"), spans_machines=num_gpus > gpu.per_machine)
        rows = max(world.rows_of_ranks(config.training.global_batch_size))
        memory = self._memory(world)
        ways = ways_to_fit(memory, gpu.memory_gib, self.largest, world, self.parameters, self.towers)
        settings = ways[0] if ways else None
        config = replace(config, machine=replace(config.machine, **(settings or {})))
        sent = communication(config, world, self.parameters, gpu)
        saved = saving(4 * self.parameters.whole, self._bytes_divided(), num_gpus)
        speeds = {} if settings is None else self._speeds(config, world, sent)
        days = {
            name: config.training.total_samples / each.samples_per_second / SECONDS_OF_DAY / (1 - saved.lost_fraction)
            for name, each in speeds.items()
        }
        gpu_hours = {name: 24 * num_gpus * each for name, each in days.items()}
        price = self.assumptions.price
        return OnGpus(
            num_gpus=num_gpus,
            pairs=rows,
            memory=memory,
            settings=settings,
            fittings=tuple(self._fitting(world, stage) for stage in STAGES),
            by_pairs=tuple(self._memory_of_pairs(world, 2**power) for power in range(rows.bit_length())),
            communication=sent,
            saving=saved,
            start=start(self.parameters.whole, saved.bytes_of_checkpoint, gpu, num_gpus),
            speeds=speeds,
            loading={name: self._loading(each.samples_per_second, num_gpus) for name, each in speeds.items()},
            days=days,
            gpu_hours=gpu_hours,
            cost=None if price is None else {name: price * hours for name, hours in gpu_hours.items()},
        )

    def _speeds(self, config: RunConfig, world: World, sent: Communication) -> dict[str, Speed]:
        """The speed for each of UTILISATIONS."""
        rows = world.rows_of_ranks(config.training.global_batch_size)
        parts = num_parts(rows, config.machine.pairs_per_forward)
        launches = LAUNCH_SECONDS_OF_BLOCK[zero_stage(config, world.size)] * self.num_blocks
        return {
            name: speed(
                self.gpu,
                world.size,
                pairs_of_rank=max(rows),
                global_batch_size=config.training.global_batch_size,
                flops_of_sample=self.flops_of_sample,
                repeats=int(config.machine.checkpoint_blocks) + (parts > 1),
                launch_seconds=launches * parts * (1 if parts == 1 else 1 + REPEATED),
                communication_seconds=sent.seconds,
                utilisation=utilisation,
            )
            for name, utilisation in UTILISATIONS.items()
        }

    def _bytes_divided(self) -> int:
        """Bytes of a checkpoint that the ranks divide among them: the moments, and perhaps averages."""
        averages = 0 if self.config.training.ema_decay is None else 4 * self.parameters.trained
        return bytes_of_moments(self.config, self.parameters) + averages

    def _loading(self, samples_per_second: float, num_gpus: int) -> Loading:
        """What a machine's share of the samples needs."""
        share = min(num_gpus, self.gpu.per_machine) / num_gpus
        size, per_core = self.config.model.image.image_size, self.assumptions.samples_per_core_second
        largest_size = self.largest.model.image.image_size
        return loading(samples_per_second * share, size, per_core, largest_size=largest_size)

    def _memory(self, world: World, **machine: Any) -> Memory:
        config = replace(self.largest, machine=replace(self.largest.machine, **machine))
        return memory_of(config, world, self.parameters, self.towers)

    def _gib(self, world: World, **machine: Any) -> float:
        """The memory of a rank, with what CUDA itself takes."""
        return self._memory(world, **machine).total / GIB + RESERVED_GIB

    def _memory_of_pairs(self, world: World, pairs: int) -> MemoryOfPairs:
        plain, checkpointed = (
            self._gib(world, pairs_per_forward=pairs, checkpoint_blocks=checkpoints) for checkpoints in (False, True)
        )
        return MemoryOfPairs(pairs, plain, checkpointed)

    def _fitting(self, world: World, stage: int) -> Fitting:
        rows = max(world.rows_of_ranks(self.config.training.global_batch_size))

        def most(checkpoints: bool) -> int:
            def fits(pairs: int) -> bool:
                gib = self._gib(world, zero_stage=stage, pairs_per_forward=pairs, checkpoint_blocks=checkpoints)
                return gib <= self.gpu.memory_gib

            return largest_that(fits, rows)

        return Fitting(stage, self._gib(world, zero_stage=stage), most(False), most(True))


def sum_of_cases(cases: Sequence[ByCase]) -> dict[str, float]:
    """The sums of runs that follow one another, for each of UTILISATIONS; empty if one of them does not fit."""
    return {name: sum(case[name] for case in cases) for name in UTILISATIONS} if all(cases) else {}
