"""The rank of this process in a run, and its device."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.distributed as dist

from diptych.device import refuse_unusable_gpu, unusable_gpu
from diptych.errors import OneRankError, UserError
from diptych.machine import usable_cpus
from diptych.slurm import launcher_variables

logger = logging.getLogger(__name__)

MEETING = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Variables that every launcher sets so that the ranks can meet."""

MAX_LOADER_WORKERS = 12
"""Loader processes of a rank unless the user asks for more: each holds two batches in shared memory."""

FULL_MEMORY = re.compile(r"out of memory|can't allocate memory|_STATUS_ALLOC_FAILED")
"""The words with which CUDA, its libraries and the CPU's allocator report full memory in a RuntimeError."""


@dataclass(frozen=True)
class World:
    """The place of this process: `rank` of `size`, `local_rank` on this machine, and its device."""

    rank: int = 0
    local_rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")
    num_sharing_cpus: int = 1
    """The number of ranks, with this one, that share this process's CPUs."""
    spans_machines: bool = False
    """Whether some ranks run on other machines, over a slower network."""
    control: dist.ProcessGroup | None = field(default=None, compare=False, repr=False)
    """The group over which ranks agree and wait for one another; None: torch's default group, which carries tensors."""
    store: dist.Store | None = field(default=None, compare=False, repr=False)
    """Where ranks leave notes for one another at any time. Each thread needs a clone, since a call blocks others."""

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def share_of_machine(self) -> float:
        """The share of each batch that this machine's ranks process; too small if Slurm binds each to its own CPUs."""
        return self.num_sharing_cpus / self.size if self.spans_machines else 1.0

    def rows(self, global_batch_size: int) -> tuple[int, int]:
        """The rows [first, stop) of the global batch that this rank processes.

        Raises:
            UserError: there are more ranks than rows.
        """
        rows_of_ranks = self.rows_of_ranks(global_batch_size)
        first = sum(rows_of_ranks[: self.rank])
        return first, first + rows_of_ranks[self.rank]

    def rows_of_ranks(self, global_batch_size: int) -> list[int]:
        """How many rows of the global batch each rank processes; the numbers differ by at most one.

        Raises:
            UserError: there are more ranks than rows.
        """
        if global_batch_size < self.size:
            raise UserError(
                f"training.global_batch_size {global_batch_size} cannot be split over {self.size} ranks, each of which "
                f"needs a pair; set it to {self.size} or more, or start fewer ranks"
            )
        share, left = divmod(global_batch_size, self.size)
        return [share + 1] * left + [share] * (self.size - left)

    def loader_workers(self, asked: int | Literal["auto"]) -> int:
        """The number of loader processes for this rank; `auto` leaves one CPU of its share to the rank itself."""
        if asked != "auto":
            return asked
        if self.device.type == "cpu":
            return 1
        return min(max(usable_cpus() // self.num_sharing_cpus - 1, 1), MAX_LOADER_WORKERS)


def read_world() -> World:
    """Read the place of this process from the variables of torchrun, deepspeed or srun; one rank without a launcher.

    Raises:
        UserError: the variables contradict one another, or the machine's GPU cannot be used. `process_group` checks
            whether the ranks can meet.
    """
    os.environ.update(launcher_variables(os.environ))
    size, rank, local_rank = _whole_number("WORLD_SIZE", 1), _whole_number("RANK", 0), _whole_number("LOCAL_RANK", 0)
    if rank >= size:
        raise UserError(leftover_variables() or f"the environment has RANK={rank}; it must be below WORLD_SIZE={size}")
    refuse_unusable_gpu()
    device = torch.device("cpu")
    if torch.cuda.is_available():
        # A launcher may make one GPU visible to each rank.
        device = torch.device("cuda", local_rank % torch.cuda.device_count())
    of_torchrun, of_deepspeed = "LOCAL_WORLD_SIZE", "LOCAL_SIZE"
    num_here = max(1, _whole_number(of_torchrun if os.environ.get(of_torchrun) else of_deepspeed, 1))
    # Slurm binds each task to its own CPUs; this rank is such a task.
    is_bound = os.environ.get("SLURM_CPUS_PER_TASK") and os.environ.get("SLURM_NTASKS") == str(size)
    return World(rank, local_rank, size, device, 1 if is_bound else num_here, spans_machines=num_here < size)


def leftover_variables() -> str | None:
    """The message for a shell with a leftover RANK or WORLD_SIZE but no address to meet at; None if all is well.

    Such a process would train alone on its share of each batch, and the rest would be missing.
    """
    missing = [name for name in MEETING if not os.environ.get(name)]
    left = [name for name in ("RANK", "WORLD_SIZE") if os.environ.get(name)]
    if not missing or not left:
        return None
    return (
        f"the environment has {' and '.join(f'{name}={os.environ[name]}' for name in left)} without "
        f"{', '.join(missing)}; start the ranks with torchrun or deepspeed, or `unset {' '.join(left)}` to train with "
        f"one process"
    )


def _whole_number(name: str, default: int) -> int:
    value = os.environ.get(name) or str(default)
    if not (value.isascii() and value.isdigit() and int(value) >= (name == "WORLD_SIZE")):
        raise UserError(f"the environment has {name}={value!r}; expected a whole number, as launchers set it")
    return int(value)


def choose_device(name: str | torch.device | None = None) -> torch.device:
    """The device with this name, after a test that it works; for None the GPU if there is one, else the CPU.

    Raises:
        UserError: there is no such device, or it cannot be used.
    """
    if name is None:
        if why := unusable_gpu():
            logger.warning("computing on the CPU: %s", why)
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"device {str(name)!r} cannot be used ({reason}); this machine has {', '.join(_devices())}"
        ) from error
    return device


def _devices() -> Iterator[str]:
    yield "cpu"
    yield from (f"cuda:{number}" for number in range(torch.cuda.device_count()))
    if torch.backends.mps.is_available():
        yield "mps"


@contextmanager
def explain_full_memory(device: torch.device, way_out: str) -> Iterator[None]:
    """Turn an error about full memory, of the device or this machine, into one line that ends with `way_out`.

    Raises:
        OneRankError: the memory is full.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and not FULL_MEMORY.search(str(error)):
            raise
        where = str(device)
        if device.type == "cuda":
            free, total = torch.cuda.mem_get_info(device)
            where += f", of whose {total / 2**30:.1f} GiB {free / 2**30:.1f} are free"
        raise OneRankError(f"out of memory on {where}: {way_out}") from error
