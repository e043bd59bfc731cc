"""Pictures by where they lie: members of shards, or files of a folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash
from PIL import Image

from diptych.data import colour_profile
from diptych.data.caption_files import PICTURE_ENDINGS
from diptych.data.picture_safety import MAX_PIXELS
from diptych.data.shard_index_file import MAX_MEMBER_BYTES, PICTURE_SUFFIXES, Member
from diptych.data.shards import ShardIndex, open_index, read_member
from diptych_shards.pictures.decode import open_file
from diptych_shards.pictures.resize import upright
from diptych_shards.refusals import shown
from diptych_shards.select.errors import SelectError

FILES_AT_ONCE = 10_000


@dataclass(frozen=True)
class Place:
    """Where the bytes of one picture are."""

    path: str
    member: Member | None = None
    """Of a tar; None for a file by itself."""

    def read(self) -> bytes:
        """Raises:
        OSError: it cannot be read.
        ShardError: the tar is damaged there.
        """
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            if self.member is not None:
                return read_member(descriptor, self.member)
            with open(descriptor, "rb", closefd=False) as file:
                return file.read(MAX_MEMBER_BYTES + 1)
        finally:
            os.close(descriptor)


@dataclass(frozen=True)
class Unit:
    """Pictures that are hashed together: one shard, or some files of a folder."""

    name: str
    identity: str
    """Another one when the pictures are others."""
    places: Sequence[Place | None]
    """None for a sample without a picture."""
    names: Sequence[str]
    """By which people know them."""


def of_shard(index: ShardIndex, number: int) -> Unit:
    shard = index.shards[number]
    path = str(shard.path)
    samples = [index.sample(number, row) for row in range(shard.samples)]
    return Unit(
        name=shard.name,
        identity=shard.sha256,
        places=[place_of(path, members) for _, members in samples],
        names=[key for key, _ in samples],
    )


def place_of(tar: str, members: Sequence[Member]) -> Place | None:
    """Of a sample's picture."""
    return next((Place(tar, member) for member in members if member.suffix in PICTURE_SUFFIXES), None)


def units_at(location: str) -> list[Unit]:
    """The pictures of shards, or all picture files of a folder and those below it.

    Raises:
        SelectError: there is no picture.
        ShardError: the shards are damaged.
    """
    path = Path(location)
    if not path.is_dir() or any(path.glob("*.tar")):
        index = open_index(location)
        units = [of_shard(index, number) for number in range(len(index.shards))]
        return [
            Unit(unit.name, unit.identity, unit.places, [f"{index.shards[number].path}/{name}" for name in unit.names])
            for number, unit in enumerate(units)
        ]
    files = sorted(os.path.join(where, name) for where, _, names in os.walk(path) for name in names)
    files = [file for file in files if file.lower().endswith(PICTURE_ENDINGS) and os.path.isfile(file)]
    if not files:
        raise SelectError(f"{shown(location)} holds no picture ({', '.join(PICTURE_ENDINGS)}) and no shard")
    starts = range(0, len(files), FILES_AT_ONCE)
    return [_of_files(location, files[start : start + FILES_AT_ONCE]) for start in starts]


def decoded(data: bytes) -> np.ndarray:
    """u8[height, width, 3] as a viewer would show the picture.

    Raises:
        PictureError: if it is none, or not whole.
    """
    picture, facts = open_file(data, max_pixels=MAX_PIXELS).decode()
    pixels = np.asarray(picture)
    if facts.profile is not None:
        pixels = np.asarray(colour_profile.to_srgb(Image.fromarray(pixels), facts.profile))
    return upright(pixels, facts.orientation)


def _of_files(location: str, files: Sequence[str]) -> Unit:
    known = xxhash.xxh3_128()
    for file in files:
        found = os.stat(file)
        known.update(os.fsencode(f"{file}\0{found.st_size}\0{found.st_mtime_ns}\n"))
    return Unit(
        name=Path(location).name,
        identity=known.hexdigest(),
        places=[Place(file) for file in files],
        names=files,
    )
