"""The rank of this process in a run, and what the ranks do together.

This is the only file that reads the launcher's environment variables.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist

from diptych.command_line import exit_status, user_message
from diptych.device import refuse_unusable_gpu, unusable_gpu
from diptych.errors import LostRankError, NoMeetingError, OneRankError, UserError
from diptych.machine import usable_cpus
from diptych.slurm import launcher_variables

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")

MEETING = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Variables that every launcher sets so that the ranks can meet."""

MAX_LOADER_WORKERS = 12
"""Loader processes of a rank unless the user asks for more: each holds two batches in shared memory."""

CONTROL_TIMEOUT = timedelta(hours=3)
"""How long ranks wait for a decision of rank 0, which may read all checkpoints of a run from a slow disk."""

ABORT_SECONDS = 5
"""How long a rank with an error tries to abort its operations on tensors before it ends anyway."""

SAME_ERROR_SECONDS = 5
"""How long another rank with an error waits for rank 0 to have the same, which rank 0 then prints for all."""

ENDED, FIRST_ERROR = "ended", "error of rank 0"
"""The notes in the store of a rank that ends with an error, and of rank 0."""

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
def process_group(world: World, timeout_seconds: int) -> Iterator[World]:
    """Open the groups of a run during the block, and yield the world with them.

    Tensors travel over torch's default group: NCCL on CUDA, gloo on the CPU. What ranks agree on travels over a gloo
    group of its own, `World.control`, where they may wait for hours. If the block raises, operations on tensors are
    aborted, since other ranks may never finish them. A single process needs no launcher and no port: its group exists
    in memory.

    Raises:
        UserError: the environment is that of ranks that cannot meet.
        NoMeetingError: the ranks do not meet in time.
        OneRankError: the block has raised a mistake that rank 0 has not made, so that this rank prints it.
    """
    if world.size > 1 and (why := leftover_variables()):
        raise UserError(why)
    if world.device.type == "cuda":
        torch.cuda.set_device(world.device)
    alone: dict[str, Any] = {"store": dist.HashStore(), "rank": 0, "world_size": 1} if world.size == 1 else {}
    timeout = timedelta(seconds=timeout_seconds)
    _use_the_network_of_nccl()
    try:
        dist.init_process_group("nccl" if world.device.type == "cuda" else "gloo", timeout=timeout, **alone)
        if world.size > 1:
            control = dist.new_group(backend="gloo", timeout=timeout)
            assert isinstance(control, dist.ProcessGroup)
            _set_timeout(CONTROL_TIMEOUT, control)
            world = replace(world, control=control)
        # A launcher may use one store for all starts of the ranks.
        this_start = decide_on_first_rank(world, lambda: uuid.uuid4().hex)
        world = replace(world, store=dist.PrefixStore(this_start, dist.distributed_c10d._get_default_store()).clone())
    except RuntimeError as error:
        if not _is_of_communication(error):
            raise
        place = ":".join(os.environ.get(name, "?") for name in ("MASTER_ADDR", "MASTER_PORT"))
        raise NoMeetingError(
            f"rank {world.rank} of {world.size} does not meet the others at {place} (MASTER_ADDR:MASTER_PORT) within "
            f"machine.process_group_timeout_seconds={timeout_seconds}: {str(error).partition(chr(10))[0]}; start "
            f"all ranks together with torchrun or deepspeed, and if machines have several networks, name the one that "
            f"connects them in GLOO_SOCKET_IFNAME"
        ) from error
    try:
        refuse_shared_gpu(world)
        with _explain_lost_ranks():
            yield world
            # A launcher may end all ranks as soon as one has ended, and rank 0 closes the trackers.
            on_any_rank(world, False)
    except Exception as error:
        if world.size > 1:
            _leave(world, error)
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def set_timeout_of_tensors(world: World, timeout: timedelta) -> None:
    """Set how long an operation on tensors may wait for other ranks, in torch's default group and DeepSpeed's."""
    for group in dist.distributed_c10d._world.pg_map:
        if group is not world.control:
            _set_timeout(timeout, group)


def _set_timeout(timeout: timedelta, group: dist.ProcessGroup) -> None:
    change = getattr(dist, "set_timeout", None) or dist.distributed_c10d._set_pg_timeout  # its name before torch 2.14
    change(timeout, group)


def _leave(world: World, error: Exception) -> None:
    """Leave a note for the other ranks that this one ends with an error, and abort what its device does with them.

    Raises:
        OneRankError: the error is a mistake, and rank 0 has another one or none.
    """
    store, said = world.store, f"{type(error).__name__}: {error}"
    may_be_shared = not isinstance(error, OneRankError | LostRankError) and exit_status(error) == 2
    assert store is not None
    is_shared = threading.Event()

    def leave() -> None:
        if world.is_first:
            store.set(FIRST_ERROR, said)
        elif may_be_shared and _get(store, FIRST_ERROR, SAME_ERROR_SECONDS) == said.encode():
            is_shared.set()
        store.set(ENDED, str(world.rank))
        if world.device.type == "cuda":
            dist.distributed_c10d._abort_process_group()

    # Each of these may wait for ever for what is broken.
    leaving = threading.Thread(target=leave, daemon=True)
    leaving.start()
    leaving.join(SAME_ERROR_SECONDS + ABORT_SECONDS)
    if may_be_shared and not world.is_first and not is_shared.is_set():
        raise OneRankError(user_message(error)) from error


def _get(store: dist.Store, key: str, seconds: float) -> bytes:
    """The value of a key as soon as it has one; empty if it has none after this time."""
    deadline = time.monotonic() + seconds
    while not store.check([key]):
        if time.monotonic() >= deadline:
            return b""
        time.sleep(0.05)
    return store.get(key)


def _use_the_network_of_nccl() -> None:
    """Let gloo use the network that NCCL_SOCKET_IFNAME names, if it is exactly one."""
    name = os.environ.get("NCCL_SOCKET_IFNAME", "").removeprefix("=")
    if name in (network for _, network in socket.if_nameindex()):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def refuse_shared_gpu(world: World) -> None:
    """Raise OneRankError if another rank uses this rank's GPU; NCCL would hang or fail with a vaguer message."""
    if world.size == 1 or world.device.type != "cuda":
        return
    gpu = str(torch.cuda.get_device_properties(world.device).uuid)
    owner = first_to_claim(dist.distributed_c10d._get_default_store(), f"{socket.gethostname()} {gpu}", world.rank)
    if owner != world.rank:
        raise OneRankError(
            f"ranks {owner} and {world.rank} have the same GPU ({world.device} of {socket.gethostname()}); start no "
            f"more ranks on a machine than it has GPUs"
        )


def first_to_claim(store: dist.Store, what: str, rank: int) -> int:
    """Claim `what` for a rank, and return the rank that claimed it first in this store."""
    return int(store.compare_set(f"claim {what}", "", str(rank)))


@contextmanager
def _explain_lost_ranks() -> Iterator[None]:
    """Turn an error of the communication backend anywhere in the block into one line.

    Raises:
        LostRankError: another rank ended, or did not answer in time.
    """
    try:
        yield
    except RuntimeError as error:
        if not _is_of_communication(error):
            raise
        why = str(error).partition("\n")[0].rpartition("] ")[2].partition(". ")[0] or type(error).__name__
        raise LostRankError(
            f"lost the other ranks ({why}): one has ended or hangs, and it or the launcher says why; "
            "the same command goes on from the last checkpoint"
        ) from error


def _is_of_communication(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or "gloo/transport" in str(error)


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


def sums_over_ranks(world: World, numbers: Sequence[int]) -> list[int]:
    """Each number summed over ranks; every rank must call it."""
    sums = torch.tensor(numbers, device="cpu" if world.control else world.device)
    dist.all_reduce(sums, group=world.control)
    return sums.tolist()


def on_any_rank(world: World, claim: bool) -> bool:
    """Whether the claim is true on at least one rank; every rank must call it."""
    flag = torch.tensor([int(claim)], device="cpu" if world.control else world.device)
    dist.all_reduce(flag, dist.ReduceOp.MAX, group=world.control)
    return bool(flag)


def gather_on_first_rank(world: World, value: Answer) -> list[Answer]:
    """The picklable values of all ranks, on rank 0, and nothing on the others; every rank must call it."""
    values: list[Any] = [None] * world.size
    dist.gather_object(value, values if world.is_first else None, group=world.control)
    return values if world.is_first else []


def decide_on_first_rank(world: World, decide: Callable[[], Answer]) -> Answer:
    """Call `decide` on rank 0 and return its result on every rank; every rank must call this.

    It is for decisions that need the run directory or the shards. The result must be picklable. If `decide` raises,
    rank 0 raises the error and the other ranks exit silently, with the status that rank 0 will have.
    """
    answer: Answer | None = None
    fault: Exception | None = None
    if world.is_first:
        try:
            answer = decide()
        except Exception as error:
            fault = error
    verdict = [0 if fault is None else exit_status(fault), answer]
    dist.broadcast_object_list(verdict, src=0, group=world.control)
    if fault is not None:
        raise fault
    if verdict[0]:
        raise SystemExit(verdict[0])
    return verdict[1]  # type: ignore[return-value]
