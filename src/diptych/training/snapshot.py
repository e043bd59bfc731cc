"""Copy what a rank saves to memory that the process which writes it shares, and plan its files.

Each rank saves its parts of the optimizer's moments, in `optimizer/rank_N.safetensors`. Rank 0 has the whole weights
and writes `model/`. What is divided among ranks but saved whole (averages; at ZeRO stage 3 the weights too) travels to
rank 0's process in files in the folder `parts/` of the unfinished checkpoint.
"""

from __future__ import annotations

import ctypes
import json
import logging
import mmap
import os
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from diptych.checkpoint_folder import EMA, MODEL, PARTS, TOKEN_HEAD
from diptych.training.writing_orders import FilePlan, Part, TensorPlan

logger = logging.getLogger(__name__)

ALIGNMENT = 64
PAGES_AT_ONCE = 1 << 24

NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Types of elements and their names in safetensors files."""


@dataclass(frozen=True)
class SharePart:
    """Consecutive elements of a tensor, from element `start` on, which this rank saves."""

    start: int
    values: Tensor
    whole: torch.Size


@dataclass(frozen=True)
class Share:
    """What a rank saves, as tensors on its device that the next update changes."""

    step: Tensor
    """The optimizer's count of steps."""
    moments: dict[str, dict[str, SharePart]]
    """Kind → parameter name → part."""
    divided: dict[str, dict[str, SharePart]] = field(default_factory=dict)
    """Model folder → name → part, for tensors of which each rank has a part."""
    whole: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """Model folder → name → tensor, for tensors that rank 0 has; only on rank 0."""

    @property
    def checkpoint_bytes(self) -> int:
        """The size of all tensors of the checkpoint, of every rank; complete on rank 0."""
        parts = [part for parts in (*self.moments.values(), *self.divided.values()) for part in parts.values()]
        whole = [tensor for tensors in self.whole.values() for tensor in tensors.values()]
        return sum(each.whole.numel() * each.values.element_size() for each in parts) + sum(t.nbytes for t in whole)

    def tensors(self) -> Iterator[Tensor]:
        """All tensors in a fixed order, flat."""
        yield self.step.view(-1)
        for parts in (*self.moments.values(), *self.divided.values()):
            yield from (part.values.view(-1) for part in parts.values())
        for tensors in self.whole.values():
            yield from (tensor.detach().reshape(-1) for tensor in tensors.values())


class Snapshot:
    """Memory for a copy of a rank's share, and the files to be written of it.

    The memory is reserved once and used for every save. Its pages are allocated in the background, since that takes
    longer than the copy.
    """

    def __init__(self, share: Share, rank: int):
        tensors = list(share.tensors())
        self._device = next((tensor.device for tensor in tensors if tensor.is_cuda), torch.device("cpu"))
        offsets, size = [], 0
        for tensor in tensors:
            offsets.append(size)
            size += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
        self.descriptor = _open_memory(max(size, ALIGNMENT))
        """The open file whose content is the memory."""
        self.memory = mmap.mmap(self.descriptor, 0)
        self._bytes = torch.frombuffer(self.memory, dtype=torch.uint8)
        self._copies = [
            self._bytes[offset : offset + tensor.nbytes].view(tensor.dtype)
            for offset, tensor in zip(offsets, tensors, strict=True)
        ]
        self.files = _plan_files(share, rank, offsets)
        self._copied: torch.cuda.Event | None = None
        self._held: list[tuple[Tensor, Tensor]] | None = None
        self._stream: torch.cuda.Stream | None = None
        self._is_pinned = False
        self._allocation = threading.Thread(target=self._allocate, daemon=True)
        self._allocation.start()

    @torch.no_grad()
    def take(self, share: Share) -> torch.cuda.Event | None:
        """Start to copy the share; on CUDA return an event that the next update has to wait for."""
        self._allocation.join()
        pairs = list(zip(self._copies, share.tensors(), strict=True))
        if self._device.type != "cuda":
            for copy, tensor in pairs:
                copy.copy_(tensor)
            return None
        if self._stream is None:
            self._stream = torch.cuda.Stream(self._device)
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            for copy, tensor in pairs:
                copy.copy_(tensor, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()
        self._held = pairs  # their memory must not be used for anything else before the copy is done
        return self._copied

    def is_taken(self, *, waits: bool = False) -> bool:
        """Whether the last copy is complete; with `waits`, wait until it is."""
        if self._copied is not None:
            if waits:
                self._copied.synchronize()
            elif not self._copied.query():
                return False
            self._copied = self._held = None
        return True

    def close(self) -> None:
        """Close the file; the memory is freed with the last object that uses it."""
        self._allocation.join()
        if self._is_pinned:
            torch.cuda.cudart().cudaHostUnregister(self._bytes.data_ptr())
        os.close(self.descriptor)

    def _allocate(self) -> None:
        """Allocate the memory's pages, and on CUDA pin them; else the first copy would."""
        size = self._bytes.numel()
        for first in range(0, size, PAGES_AT_ONCE):
            # Unlike torch's fill, this needs neither Python's lock nor the threads that training uses.
            ctypes.memset(self._bytes.data_ptr() + first, 0, min(PAGES_AT_ONCE, size - first))
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)
            failure = int(torch.cuda.cudart().cudaHostRegister(self._bytes.data_ptr(), size, 0))
            self._is_pinned = not failure
            if failure:
                logger.warning("the memory for saves cannot be pinned (CUDA error %d): copies to it are slow", failure)


def _open_memory(size: int) -> int:
    """Open a file in memory that has no name; on systems without such files (macOS) one on the disk."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("diptych snapshot", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor


def _plan_files(share: Share, rank: int, offsets: list[int]) -> dict[str, FilePlan]:
    """The files that this rank writes; offsets: where each of the share's tensors is in the memory."""
    place = iter(offsets)

    def part(each: SharePart) -> Part:
        return Part(each.start, next(place), each.values.nbytes)

    optimizer = {"step": TensorPlan("F32", (), (Part(0, next(place), share.step.nbytes),))}
    divided_among_ranks = (*share.moments.values(), *share.divided.values())
    starts = {name: each.start for parts in divided_among_ranks for name, each in parts.items()}
    for kind, parts in share.moments.items():
        optimizer |= {
            f"{kind}.{name}": TensorPlan(NAMES[each.values.dtype], (each.values.numel(),), (part(each),))
            for name, each in parts.items()
        }
    described = {"format": "pt", "starts": json.dumps(starts)}
    name = f"rank_{rank:05d}.safetensors"
    files = {f"optimizer/{name}": FilePlan(optimizer, metadata=described)}
    divided = {
        folder: {name: (each, part(each)) for name, each in parts.items()} for folder, parts in share.divided.items()
    }
    if rank > 0:
        if divided:
            tensors = {
                f"{folder}.{name}": TensorPlan(NAMES[each.values.dtype], (each.values.numel(),), (where,))
                for folder, parts in divided.items()
                for name, (each, where) in parts.items()
            }
            files[f"{PARTS}/{name}"] = FilePlan(tensors, metadata=described)
        return files
    whole = {
        folder: {
            name: TensorPlan(NAMES[tensor.dtype], tuple(tensor.shape), (Part(0, next(place), tensor.nbytes),))
            for name, tensor in tensors.items()
        }
        for folder, tensors in share.whole.items()
    }
    for folder in (MODEL, EMA, TOKEN_HEAD):
        joined = {
            name: TensorPlan(NAMES[each.values.dtype], tuple(each.whole), (where,))
            for name, (each, where) in divided.get(folder, {}).items()
        }
        if folder in (*whole, *divided):
            # Averages leave out counters, which are those of the weights.
            tensors = {**(whole[MODEL] if folder == EMA else {}), **whole.get(folder, {}), **joined}
            files[f"{folder}/model.safetensors"] = FilePlan(tensors, kind=folder)
    return files
