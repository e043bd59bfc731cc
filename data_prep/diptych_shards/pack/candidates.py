"""The input of a pack: pictures with a caption, the files that are refused unopened, and the share that is held out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import xxhash

from diptych.errors import UserError
from diptych.terminal import counted
from diptych_shards.refusals import Refusal

_COMPARED_BYTES = 64 << 10
_HASHES = 1 << 64


@dataclass(frozen=True)
class Candidate:
    """A picture and where its caption is: in files next to it, or in a table."""

    path: str
    """Relative to the folder, with `/`."""
    num_bytes: int
    text_path: str = ""
    json_path: str = ""
    captions: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PackInput:
    """All that was found; the candidates are in the order of the bytes of their paths."""

    candidates: list[Candidate]
    refusals: list[Refusal]
    fingerprint: str
    """A hash of names, sizes, modification times and the table's bytes: a pack resumes only if it is unchanged."""


def hold_out(found: PackInput, folder: Path, share: float) -> tuple[PackInput, PackInput]:
    """Split the input into what is for training, with all that was refused, and what is held out.

    A picture's bytes decide, so copies of it are on one side, and stay there when other pictures are added or removed,
    or files are renamed. Of a large file its size and its first bytes count.

    Raises:
        UserError: one of the two would be empty.
    """
    if not 0 < share < 1:
        raise UserError(f"--hold-out {share:g}: give the share that is held out, such as 0.05")
    train: list[Candidate] = []
    held_out: list[Candidate] = []
    for candidate in found.candidates:
        (held_out if _place(candidate, folder) < share else train).append(candidate)
    if not train or not held_out:
        nothing = "trains on" if held_out else "holds out"
        raise UserError(f"--hold-out {share:g} of {counted(len(found.candidates), 'picture')} {nothing} none of them; "
                        f"give another share, or leave it out")  # fmt: skip
    return replace(found, candidates=train), replace(found, candidates=held_out, refusals=[])


def _place(candidate: Candidate, folder: Path) -> float:
    """A number for the picture, evenly spread from 0 to 1; 1 if it cannot be read: `pack` refuses it later."""
    try:
        with open(folder / candidate.path, "rb") as file:
            beginning = file.read(_COMPARED_BYTES)
    except OSError:
        return 1
    return xxhash.xxh3_64_intdigest(candidate.num_bytes.to_bytes(8, "little") + beginning) / _HASHES
