"""A part of the pictures that training does not see: which those are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import xxhash

from diptych.terminal import counted
from diptych_shards.pack.candidates import Candidate, PackError, PackInput

_COMPARED_BYTES = 64 << 10
_HASHES = 1 << 64


def hold_out(found: PackInput, folder: Path, share: float) -> tuple[PackInput, PackInput]:
    """What is for training, with all that was refused, and what is held out.

    The picture's bytes decide, each by itself: copies of a picture are on one side, and so it stays when others come or
    go, or files are renamed. Of a large file its size and its beginning count.

    Raises:
        PackError: one of the two would be empty.
    """
    if not 0 < share < 1:
        raise PackError(f"--hold-out {share:g}: give the share that is held out, such as 0.05")
    train: list[Candidate] = []
    held_out: list[Candidate] = []
    for candidate in found.candidates:
        (held_out if _place(candidate, folder) < share else train).append(candidate)
    if not train or not held_out:
        nothing = "trains on" if held_out else "holds out"
        raise PackError(f"--hold-out {share:g} of {counted(len(found.candidates), 'picture')} {nothing} none of them; "
                        f"give another share, or leave it out")  # fmt: skip
    return replace(found, candidates=train), replace(found, candidates=held_out, refusals=[])


def _place(candidate: Candidate, folder: Path) -> float:
    """Evenly spread between 0 and 1; 1 for what cannot be read, and will be refused where it is packed."""
    try:
        with open(folder / candidate.path, "rb") as file:
            beginning = file.read(_COMPARED_BYTES)
    except OSError:
        return 1
    return xxhash.xxh3_64_intdigest(candidate.num_bytes.to_bytes(8, "little") + beginning) / _HASHES
