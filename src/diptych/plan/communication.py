"""Compute the bytes that a rank sends in a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from diptych.config.schema import RunConfig
from diptych.plan.gpus import Gpu
from diptych.training.accumulate import num_parts
from diptych.training.deepspeed_config import zero_stage
from diptych.training.memory import LIVE_PARAMETERS
from diptych.training.parameter_groups import ParameterCounts
from diptych.world import World

REACHED = 0.85
"""Share of the links' bandwidth that NCCL's all-reduce reaches with large messages: about 350 of 400 GB/s between
machines with eight cards of 400 Gbit/s each (the bus bandwidth of NVIDIA's nccl-tests)."""

FLOAT, DOUBLE = 4, 8


@dataclass(frozen=True)
class Communication:
    """What a rank sends in a step."""

    bytes_sent: Mapping[str, int]
    """What for → bytes."""
    seconds: float
    """How long it takes if nothing else delays it."""

    @property
    def total(self) -> int:
        return sum(self.bytes_sent.values())


def communication(config: RunConfig, world: World, parameters: ParameterCounts, gpu: Gpu) -> Communication:
    """What a rank sends for features, gradients and weights; gradients are summed in fp32.

    In a ring each of n ranks sends (n - 1) / n of a tensor to gather or to reduce and scatter it, and twice as much to
    reduce it for all (Patarasuk and Yuan, Bandwidth optimal all-reduce algorithms, 2009, section 3). ZeRO 1 and 2
    gather the weights after the update, and ZeRO 3 in each forward (arXiv 1910.02054, section 7), also those that are
    frozen. The loss sends texts and their gradients, never logits.
    """
    stage, ranks = zero_stage(config, world.size), world.size
    parts = num_parts(world.rows_of_ranks(config.training.global_batch_size), config.machine.pairs_per_forward)
    pairs = ranks * max(world.rows_of_ranks(config.training.global_batch_size))
    weights = FLOAT * (parameters.whole if stage == 3 else parameters.trained)
    gathers_of_weights = (0, 1, 1, _gathers(parts, parameters.whole))[stage]
    if config.loss.predicts_words:
        pairs = 0  # none are compared
    texts = FLOAT * pairs * config.model.embed_dim
    gathered = texts + (DOUBLE * pairs if config.loss.duplicates == "positives" else 0)
    # The softmax needs the largest logit and the sum of each column, and statistics the hardest negative.
    columns = FLOAT * pairs * (3 if config.loss.name == "softmax" else 1)
    numbers = DOUBLE * 2 * ranks  # how long each rank waited, and whether its numbers are finite
    once = (ranks - 1) / ranks
    sent = {
        "gradients": round(2 * once * FLOAT * parameters.trained),
        "weights": round(once * gathers_of_weights * weights),
        "text features": round(once * gathered),
        "gradients of text features": round(once * texts),
        "numbers": round(2 * once * (columns + numbers)),
    }
    return Communication(sent, sum(sent.values()) / bytes_per_second(gpu, ranks))


def bytes_per_second(gpu: Gpu, num_gpus: int) -> float:
    """How much each rank sends a second, in one direction: over the slowest link of a ring through all ranks.

    Between machines the ring of each card runs over that card, so that the machine's network counts as a whole.
    """
    link = gpu.link_gb_per_second
    if num_gpus > gpu.per_machine:
        link = min(link, gpu.network_gbit_per_second / 8)
    return REACHED * link * 1e9


def _gathers(parts: int, num_parameters: int) -> int:
    """How often ZeRO 3 gathers the weights in a step.

    With several parts each goes through the towers twice. The backward uses what its forward has gathered, unless
    DeepSpeed has freed it, which it does with more than LIVE_PARAMETERS.
    """
    forwards = parts if parts == 1 else 2 * parts
    return forwards + (parts if num_parameters > LIVE_PARAMETERS else 0)
