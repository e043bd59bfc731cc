"""Open the groups over which the ranks of a run communicate, and leave them, also after an error."""

from __future__ import annotations

import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from diptych.agreement import decide_on_first_rank, on_any_rank
from diptych.command_line import exit_status, user_message
from diptych.errors import LostRankError, NoMeetingError, OneRankError, UserError
from diptych.world import World, leftover_variables

CONTROL_TIMEOUT = timedelta(hours=3)
"""How long ranks wait for a decision of rank 0, which may read all checkpoints of a run from a slow disk."""

SAME_ERROR_SECONDS = 5
"""How long another rank with an error waits for rank 0 to have the same, which rank 0 then prints for all."""

ABORT_SECONDS = 5
"""How long a rank with an error tries to abort its operations on tensors before it ends anyway."""

ENDED, FIRST_ERROR = "ended", "error of rank 0"
"""The notes in the store of a rank that ends with an error, and of rank 0."""


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
        LostRankError: another rank ended while they met, or in the block.
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
        if re.search("Broken pipe|by peer", str(error)):
            raise _lost_ranks(error) from error
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

    def leave_notes() -> None:
        if world.is_first:
            store.set(FIRST_ERROR, said)
        elif may_be_shared and _get(store, FIRST_ERROR, SAME_ERROR_SECONDS) == said.encode():
            is_shared.set()
        store.set(ENDED, str(world.rank))

    def leave() -> None:
        try:
            leave_notes()
        except dist.DistError:  # rank 0, which holds the store, has ended before: with the same error, it is likely
            is_shared.set()
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
    assert world.store is not None  # that of this start: the launcher may use another for all starts
    owner = first_to_claim(world.store, f"{socket.gethostname()} {gpu}", world.rank)
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
        raise _lost_ranks(error) from error


def _lost_ranks(error: RuntimeError) -> LostRankError:
    why = str(error).partition("\n")[0].rpartition("] ")[2].partition(". ")[0] or type(error).__name__
    return LostRankError(
        f"lost the other ranks ({why}): one has ended or hangs, and it or the launcher says why; "
        "the same command goes on from the last checkpoint"
    )


def _is_of_communication(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or "gloo/transport" in str(error)
