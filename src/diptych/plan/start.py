"""Estimate how long a run takes to start, and what of it grows with the number of ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from diptych.plan.gpus import Gpu

IMPORT_SECONDS = 20.0
"""For torch, DeepSpeed and CUDA, from a disk of the machine; longer from a network disk that all machines share."""
MEETING_SECONDS_OF_PAIR = 37e-6
"""For the addresses that each two ranks exchange over rank 0's store (measured: gloo's group of 128 ranks takes 0.60 s
of rank 0's processor, of 64 ranks 0.14 s)."""
SHARDS = 100_000
"""Shards that a start is planned for: 2 G samples of 20,000 each."""
LISTING_SECONDS_OF_SHARD = 52e-6
BYTES_OF_SHARD = 78
"""To open 100,000 shards and pass them to another rank: 5.2 s on rank 0, 7.8 MB (measured, benchmarks.index)."""
CONTROL_BYTES_PER_SECOND = 0.5e9
"""What gloo sends from one rank to the next, packing and unpacking included."""
BUILDING_SECONDS_OF_PARAMETER = 10e-9
"""To draw random weights: 4 s for ViT-L/14 (measured)."""
READING_BYTES_PER_SECOND = 0.5e9
"""To read, check and pass on a checkpoint."""


@dataclass(frozen=True)
class Start:
    """Seconds from the launcher's start until the first step."""

    seconds: Mapping[str, float]

    @property
    def total(self) -> float:
        return sum(self.seconds.values())


def start(num_parameters: int, bytes_of_checkpoint: int, gpu: Gpu, num_gpus: int) -> Start:
    """The time to start, or to go on from a checkpoint, with at most SHARDS shards.

    Only rank 0 reads shard indexes and checkpoints; what it found reaches n ranks in log2(n) hops or fewer. So no disk
    is asked more often with more ranks. Only the meeting grows faster than that: each rank connects to all others.
    """
    hops = math.ceil(math.log2(max(num_gpus, 2)))
    per_second = min(gpu.link_gb_per_second, gpu.network_gbit_per_second / 8 / gpu.per_machine) * 1e9
    seconds = {
        "imports": IMPORT_SECONDS,
        "meeting": MEETING_SECONDS_OF_PAIR * num_gpus**2,
        "listing shards": SHARDS * LISTING_SECONDS_OF_SHARD,
        "passing the list on": hops * SHARDS * BYTES_OF_SHARD / CONTROL_BYTES_PER_SECOND,
        "building the model": BUILDING_SECONDS_OF_PARAMETER * num_parameters,
        "passing weights and moments on": hops * bytes_of_checkpoint / per_second,
        "reading a checkpoint": bytes_of_checkpoint / READING_BYTES_PER_SECOND,
    }
    return Start(seconds)
