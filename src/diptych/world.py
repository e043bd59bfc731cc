"""Who we are among the processes of a run; the only reader of the launcher's environment."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class World:
    """A process's place: `rank` of `size`, `local_rank` on this machine, and the device it computes on."""

    rank: int = 0
    local_rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def rows(self, global_batch_size: int) -> tuple[int, int]:
        """The first and the last-plus-one row of the global batch that this rank takes.

        Raises:
            ValueError: the batch cannot be split evenly.
        """
        if global_batch_size % self.size:
            nearest = max(1, round(global_batch_size / self.size)) * self.size
            raise ValueError(
                f"training.global_batch_size {global_batch_size} cannot be split over {self.size} ranks; "
                f"the nearest that can is {nearest}"
            )
        share = global_batch_size // self.size
        return self.rank * share, (self.rank + 1) * share


def read_world() -> World:
    """From what torchrun or deepspeed put into the environment; alone where there is no launcher."""
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    if torch.cuda.is_available():
        device = torch.device("cuda", local_rank)
    else:
        device = torch.device("cpu")
    return World(rank=rank, local_rank=local_rank, size=size, device=device)


@contextmanager
def process_group(world: World, timeout_seconds: int) -> Iterator[None]:
    """The default process group for the time of the block: NCCL on CUDA, gloo on the CPU.

    One process needs no launcher: its group meets in memory, on no port.
    """
    if world.device.type == "cuda":
        torch.cuda.set_device(world.device)
    launched = {"RANK", "MASTER_ADDR"} <= os.environ.keys()
    alone: dict[str, Any] = {} if launched else {"store": dist.HashStore(), "rank": 0, "world_size": 1}
    dist.init_process_group(
        "nccl" if world.device.type == "cuda" else "gloo", timeout=timedelta(seconds=timeout_seconds), **alone
    )
    try:
        yield
    finally:
        dist.destroy_process_group()


def first_decides(world: World, decide: Callable[[], Answer]) -> Answer:
    """What `decide` gives on rank 0, on every rank; for what touches the run directory. Every rank must call it.

    A user's mistake that it raises there ends the other ranks quietly: one process says it, all stop.
    """
    answer: list[Answer | None] = [None]
    mistake: Exception | None = None
    if world.is_first:
        try:
            answer = [decide()]
        except (ValueError, OSError) as error:
            mistake = error
    verdict = [mistake is None, answer[0]]
    dist.broadcast_object_list(verdict, src=0)
    if mistake is not None:
        raise mistake
    if not verdict[0]:
        raise SystemExit(2)
    return verdict[1]  # type: ignore[return-value]
