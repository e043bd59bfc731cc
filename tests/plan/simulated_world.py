"""Steps of rank 0 of many, of which only this one exists: torch's fake process group sends nothing.

They run in a process of their own, since a process group belongs to a whole process.
"""

from __future__ import annotations

import json
import os
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diptych.agreement import decide_on_first_rank
from diptych.config.schema import RunConfig
from diptych.data.shard_list import SHARD_ROW, ShardList
from diptych.world import World
from tests.training.test_memory import config_of, most_allocated

ROWS = 4


class Sent(TorchDispatchMode):
    """Lists the collectives, each with its name and the bytes of its largest tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.collectives: list[tuple[str, int]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.namespace == "c10d":
            sizes = [tensor.nbytes for tensor in tree_leaves(args) if isinstance(tensor, Tensor)]
            self.collectives.append((function.__name__.partition(".")[0], max(sizes)))
        return function(*args, **(kwargs or {}))


def config_of_simulation(ranks: int, stage: int, pairs_per_forward: int | None) -> RunConfig:
    """ROWS pairs a rank; buckets so small that they do not matter, but at stage 3 larger than any weight."""
    config = config_of(zero_stage=stage, pairs_per_forward=pairs_per_forward)
    training = replace(config.training, global_batch_size=ranks * ROWS, total_samples=20 * ranks * ROWS)
    bucket = {"zero_optimization": {"reduce_bucket_size": 100_000 if stage < 3 else 1_000_000}}
    return replace(config, training=training, machine=replace(config.machine, deepspeed=bucket))


def pass_on(ranks: int, num_shards: int, report: str) -> None:
    """Let rank 0 list shards, and write what it passes on to a JSON file."""
    os.environ.update(RANK="0", WORLD_SIZE=str(ranks), LOCAL_RANK="0")
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    paths = [f"/shared/shards/{number:05d}.tar" for number in range(num_shards)]
    listed = ShardList(paths, np.zeros(num_shards, SHARD_ROW))
    with Sent() as sent:
        decide_on_first_rank(World(0, 0, ranks), lambda: listed)
    Path(report).write_text(json.dumps(sent.collectives))


def main(ranks: int, stage: int, pairs_per_forward: int | None, report: str) -> None:
    """Take two steps; write what was sent in the second and the most memory that was allocated to a JSON file."""
    os.environ.update(RANK="0", WORLD_SIZE=str(ranks), LOCAL_RANK="0")
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    sent = Sent()
    most = most_allocated(config_of_simulation(ranks, stage, pairs_per_forward), World(0, 0, ranks), sent)
    Path(report).write_text(json.dumps({"collectives": sent.collectives, "most_allocated": most}))
