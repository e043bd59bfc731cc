"""What the ranks of a run agree on, over a group of their own that carries no tensors of the training."""

from __future__ import annotations

import platform
import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from diptych.command_line import exit_status
from diptych.errors import UserError
from diptych.files import commit_file
from diptych.world import World

Answer = TypeVar("Answer")

LATE_FILE_SECONDS = 65.0
"""How long a file may take to be seen on another machine: NFS remembers for a minute that a folder was not there."""
LOOK_SECONDS = 0.1


def on_any_rank(world: World, claim: bool) -> bool:
    """Whether the claim is true on at least one rank; every rank must call it."""
    flag = torch.tensor([int(claim)], device="cpu" if world.control else world.device)
    dist.all_reduce(flag, dist.ReduceOp.MAX, group=world.control)
    return bool(flag)


def sums_over_ranks(world: World, numbers: Sequence[int]) -> list[int]:
    """Each number summed over ranks; every rank must call it."""
    sums = torch.tensor(numbers, device="cpu" if world.control else world.device)
    dist.all_reduce(sums, group=world.control)
    return sums.tolist()


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


def check_shared(world: World, folder: Path, key: str) -> None:
    """Check that every rank sees what rank 0 writes into the folder; every rank must call it.

    key: the setting that names the folder.

    Raises:
        UserError: on rank 0, if one does not.
    """
    if world.size == 1:
        return
    file = folder / "seen_by_all_ranks"

    def write_word() -> bytes:
        commit_file(file, word := secrets.token_bytes(16))
        return word

    word = decide_on_first_rank(world, write_word)
    here = f"rank {world.rank} on {platform.node()}"
    blind = [each for each in gather_on_first_rank(world, here if not _comes(file, word) else "") if each]

    def refuse() -> None:
        file.unlink(missing_ok=True)
        if blind:
            more = f" and {len(blind) - 1} more" if len(blind) > 1 else ""
            raise UserError(
                f"{key} {folder}: what rank 0 on {platform.node()} writes there is not seen by {blind[0]}{more}; set "
                f"{key} to a folder on a disk that all machines share, by its full path"
            )

    decide_on_first_rank(world, refuse)


def _comes(file: Path, content: bytes) -> bool:
    """Whether the file has this content, now or soon."""
    deadline = time.monotonic() + LATE_FILE_SECONDS
    while True:
        try:
            if file.read_bytes() == content:
                return True
        except OSError:
            pass
        if time.monotonic() > deadline:
            return False
        time.sleep(LOOK_SECONDS)
