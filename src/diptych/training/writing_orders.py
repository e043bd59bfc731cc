"""What a rank tells the process that writes its share of checkpoints, and what that one answers.

A `Plan` comes first, and says which files the memory fills that both see; then for each checkpoint a `Task` and, on
rank 0, a `Commit`. This file imports no torch, since the writing process needs none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BYTES_OF = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "BF16": 2, "F16": 2, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
"""Bytes of an element, by the name that safetensors gives to its type."""


@dataclass(frozen=True)
class Part:
    """Consecutive elements of a tensor, from element `start` on, and where their bytes are."""

    start: int
    offset: int
    num_bytes: int
    file: Path | None = None
    """None: in the memory that the rank shares."""


@dataclass(frozen=True)
class TensorPlan:
    """A tensor of a file that is to be written, and the parts of it that this rank has."""

    dtype: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...]

    @property
    def num_bytes(self) -> int:
        size = BYTES_OF[self.dtype]
        for length in self.shape:
            size *= length
        return size


@dataclass(frozen=True)
class FilePlan:
    """A safetensors file that is to be written."""

    tensors: Mapping[str, TensorPlan]
    kind: str = ""
    """How the parts that are missing are named in the files of the other ranks: `KIND.NAME`."""
    metadata: Mapping[str, str] = field(default_factory=lambda: {"format": "pt"})

    @property
    def is_complete(self) -> bool:
        return all(sum(part.num_bytes for part in each.parts) == each.num_bytes for each in self.tensors.values())


@dataclass(frozen=True)
class Plan:
    """What this rank writes of every checkpoint; the same for the whole run."""

    folder: Path
    """The folder of all checkpoints."""
    rank: int
    files: Mapping[str, FilePlan]
    """By their paths in a checkpoint."""
    texts: Mapping[str, str]
    """Further files of every checkpoint; rank 0 has them."""
    checkpoint_bytes: int
    """The size of all tensors of a checkpoint, which is nearly all of it."""
    keep: int
    known_valid: frozenset[Path]
    """Checkpoints that need not be hashed again."""


@dataclass(frozen=True)
class Task:
    """Write this rank's files of a checkpoint."""

    name: str
    texts: Mapping[str, str]
    """Files of this checkpoint alone; rank 0 has them."""


@dataclass(frozen=True)
class Commit:
    """Complete the checkpoint; only rank 0's process gets it."""

    files: Mapping[str, Mapping[str, Any]]
    """Size and hash of each file that the other ranks have written."""
    manifest: Mapping[str, Any]
    """The manifest without its files."""


@dataclass(frozen=True)
class MakeRoom:
    """Remove all checkpoints but the newest valid one; only rank 0's process gets it."""


@dataclass(frozen=True)
class Written:
    """This rank's files of the checkpoint are on the disk."""

    files: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Failed:
    """The files could not be written; it will be tried again."""

    why: str
    lacks_room: bool


@dataclass(frozen=True)
class Committed:
    name: str
    num_bytes: int


@dataclass(frozen=True)
class Kept:
    """Older checkpoints are removed."""


@dataclass(frozen=True)
class Warned:
    line: str
