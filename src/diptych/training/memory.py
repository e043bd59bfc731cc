"""Compute how much memory a rank's device needs, and whether it has that much.

A trained parameter takes 4 bytes each for weight, gradient, ZeRO's second copy, average, and each of two moments (2
bytes in bf16; Muon has one moment), divided over ranks as the ZeRO stage determines. A frozen one only has its weight.
A pair takes what the towers keep for the backward (`Activations`). The global batch takes its features, and the tiles
of the loss.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from diptych.config.schema import RunConfig
from diptych.loss.tiles import LARGE_TILE, TILES
from diptych.model.activations import Activations
from diptych.terminal import counted
from diptych.training.accumulate import num_parts
from diptych.training.deepspeed_config import deepspeed_config, offloads_optimizer, zero_stage
from diptych.training.parameter_groups import ParameterCounts
from diptych.world import World

GIB = 2**30
RESERVED_GIB = 3.0
"""Memory of a GPU for CUDA's context, NCCL's buffers, kernels' workspaces, and gaps between tensors."""
LIVE_PARAMETERS = 1_000_000_000
"""Parameters that ZeRO-3 gathers at once (DeepSpeed's stage3_max_live_parameters)."""
REDUCED_AT_ONCE = 500_000_000
"""Gradients that DeepSpeed reduces at once at stage 0."""
TILES_AT_ONCE = 4
"""Tiles of the loss in memory at once: logits, their exponentials, and temporaries."""


@dataclass(frozen=True)
class Memory:
    """The memory of the rank with most rows, in bytes."""

    parts: Mapping[str, int]
    """What it is used for → bytes, at the moment of a step when the sum is largest."""
    on_host: int
    """Bytes in host memory, for an offloaded optimizer."""
    pairs: int
    """Pairs that go through the towers at once."""
    bytes_per_pair: int

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    def __str__(self) -> str:
        shown = sorted(((size, name) for name, size in self.parts.items() if size >= self.total / 100), reverse=True)
        parts = ", ".join(f"{name} {_size(size)}" for size, name in shown)
        return (
            f"{_size(self.total)} a rank: {parts} ({counted(self.pairs, 'pair')} at once, "
            f"{_size(self.bytes_per_pair)} each)" + (f"; {_size(self.on_host)} on the host" if self.on_host else "")
        )


def memory_of(config: RunConfig, world: World, parameters: ParameterCounts, of_towers: Activations) -> Memory:
    stage, ranks = zero_stage(config, world.size), world.size
    zero = deepspeed_config(config, ranks, spans_machines=world.spans_machines)["zero_optimization"]
    weights, whole, share = 4 * parameters.whole, 4 * parameters.trained, 4 * parameters.trained // ranks
    moments = bytes_of_moments(config, parameters)
    of_optimizer = {
        "ZeRO's copy of the weights": share if stage else 0,
        "moments": moments // ranks if stage else moments,
        "average": 0 if config.training.ema_decay is None else share if stage else whole,
    }
    offloads = offloads_optimizer(config)
    standing = {
        "weights": weights if stage < 3 else weights // ranks + min(weights, 4 * LIVE_PARAMETERS),
        **({} if offloads else of_optimizer),
        "buckets": _buckets(whole, zero) if stage else 0,
    }
    gradients = share if stage > 1 else whole
    rows = world.rows_of_ranks(config.training.global_batch_size)
    parts = num_parts(rows, config.machine.pairs_per_forward)
    pairs = -(-max(rows) // parts)
    checkpoints = config.machine.checkpoint_blocks
    per_pair = of_towers.of_pair
    if checkpoints:  # one block at a time keeps all its activations
        per_pair = of_towers.of_pair_checkpointed + of_towers.of_pair_in_largest_block
    forward = {
        "activations": pairs * per_pair + of_towers.of_weights,
        "pictures": _pictures(config, max(rows), pairs),
        "features and tiles": _loss(config, world, max(rows)),
    }
    # Gradients are allocated while activations are freed; those of earlier parts exist already, whole at every stage,
    # since they are reduced only once.
    backward = {"gradients": whole if parts > 1 else max(0, gradients - forward["activations"]), **forward}
    # Copies: stage 0 reduces a copy of this many gradients; measuring the update keeps a copy of the weights.
    reduced = min(whole, 4 * REDUCED_AT_ONCE) if not stage and ranks > 1 else 0
    update = {"gradients": gradients, "copies": max(reduced, share if stage else whole)}
    largest = max((backward, update), key=lambda step: sum(step.values()))
    on_host = sum(of_optimizer.values()) + share if offloads else 0
    return Memory({**standing, **largest}, on_host, pairs, per_pair)


def bytes_of_moments(config: RunConfig, parameters: ParameterCounts) -> int:
    """Bytes of the optimizer's moments on all ranks: two numbers for each parameter of AdamW, one for each of Muon."""
    return (4 if config.optimizer.moments == "fp32" else 2) * (2 * parameters.trained - parameters.by_muon)


def what_would_fit(
    memory: Memory,
    limit_gib: float,
    config: RunConfig,
    world: World,
    parameters: ParameterCounts,
    of_towers: Activations,
) -> str | None:
    """The message that it does not fit a GPU with this much memory, and which settings would; None if it fits."""
    ways = ways_to_fit(memory, limit_gib, config, world, parameters, of_towers)
    if {} in ways:
        return None
    written = [f"machine.{key}={json.dumps(value)}" for way in ways for key, value in way.items()]
    way_out = " or ".join(written) or "more ranks, a smaller model or machine.offload_optimizer=true"
    return (
        f"a rank needs {memory.total / GIB:.1f} GiB and {RESERVED_GIB:g} for CUDA itself, and its GPU has "
        f"{limit_gib:g} (machine.gpu_memory_gib): set {way_out}"
    )


def ways_to_fit(
    memory: Memory,
    limit_gib: float,
    config: RunConfig,
    world: World,
    parameters: ParameterCounts,
    of_towers: Activations,
) -> list[dict[str, Any]]:
    """Settings of `machine`, each of which lets a rank fit a GPU with this much memory.

    Only {} if it fits as it is; empty if no setting suffices.
    """
    limit = (limit_gib - RESERVED_GIB) * GIB
    if memory.total <= limit:
        return [{}]

    def fits(**machine: Any) -> bool:
        tried = replace(config, machine=replace(config.machine, **machine))
        return memory_of(tried, world, parameters, of_towers).total <= limit

    ways: list[dict[str, Any]] = []
    if not config.machine.checkpoint_blocks and fits(checkpoint_blocks=True):
        ways.append({"checkpoint_blocks": True})
    if pairs := largest_that(lambda size: fits(pairs_per_forward=size), memory.pairs):
        ways.append({"pairs_per_forward": pairs})
    return ways


def largest_that(fits: Callable[[int], bool], most: int) -> int:
    """The largest of `most` and the powers of two below it that fits; 0 if not even 1 does."""
    sizes = [most, *(2**power for power in range(most.bit_length() - 1, -1, -1) if 2**power < most)]
    return next((size for size in sizes if fits(size)), 0)


def _size(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.1f} GiB" if num_bytes >= GIB else f"{num_bytes / 2**20:.1f} MiB"


def _buckets(whole: int, zero: Mapping[str, Any]) -> int:
    bucket = 4 * int(zero["reduce_bucket_size"])
    # A bucket has full size however small the model is; with overlap there are two. If the model fills it before the
    # backward ends, a copy of it is made.
    return bucket * ((2 if zero["overlap_comm"] else 1) + (whole > bucket))


def _pictures(config: RunConfig, rows: int, pairs: int) -> int:
    """Bytes of the pictures: all rows as u8, and the pairs that go through at once as fp32."""
    pixels = 3 * config.model.image.image_size**2
    return rows * pixels + pairs * pixels * 4


def _loss(config: RunConfig, world: World, rows: int) -> int:
    """Bytes of a contrast: features of this rank's rows and of all texts with gradients, tiles, and numbers of each row
    and column."""
    if config.loss.predicts_words:
        return 0
    everyone, numbers = config.training.global_batch_size, config.model.embed_dim
    height, width = LARGE_TILE if config.machine.gpu_memory_gib else TILES.get(world.device.type, LARGE_TILE)
    tile = min(height, rows) * min(width, everyone)
    return 4 * (3 * everyone * numbers + 8 * rows * numbers + 8 * (rows + everyone) + TILES_AT_ONCE * tile)
