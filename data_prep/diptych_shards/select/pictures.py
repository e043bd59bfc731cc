"""Where pictures are: members of shards, or files of a folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import xxhash

from diptych.data.picture_files import find_pictures
from diptych.data.picture_formats import PICTURE_ENDINGS
from diptych.data.shard_index_file import MAX_MEMBER_BYTES, PICTURE_SUFFIXES, Member, Shard
from diptych.data.shards import ShardIndex, open_index, read_member
from diptych.errors import UserError
from diptych.files import local_path
from diptych.terminal import shown
from diptych_shards.refusals import Refusal, table_of_reasons

FILES_AT_ONCE = 10_000


@dataclass(frozen=True)
class Place:
    """Where the bytes of one picture are."""

    path: str
    member: Member | None = None
    """Of a tar; None for a file by itself."""

    def read(self) -> bytes:
        """The bytes of the picture.

        Raises:
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


class Unit(Protocol):
    """Pictures that are hashed together: one shard, or some files of a folder."""

    @property
    def name(self) -> str: ...

    @property
    def identity(self) -> str:
        """Changes when the pictures do."""

    @property
    def num_pictures(self) -> int: ...

    def places(self, start: int, stop: int) -> list[Place | None]:
        """None for a sample without a picture."""

    def names(self) -> list[str]:
        """What users call the pictures."""


@dataclass(frozen=True)
class ShardUnit:
    """One shard."""

    index: ShardIndex
    number: int

    @property
    def name(self) -> str:
        return self._shard.name

    @property
    def identity(self) -> str:
        return self._shard.sha256

    @property
    def num_pictures(self) -> int:
        return self._shard.samples

    def places(self, start: int, stop: int) -> list[Place | None]:
        path = os.path.abspath(self._shard.path)  # a worker elsewhere works in another folder
        return [place_of(path, self.index.sample(self.number, row)[1]) for row in range(start, stop)]

    def names(self) -> list[str]:
        keys = (self.index.sample(self.number, row)[0] for row in range(self.num_pictures))
        return [f"{self._shard.path}/{key}" for key in keys]

    @property
    def _shard(self) -> Shard:
        return self.index.shards[self.number]


@dataclass(frozen=True)
class FilesUnit:
    """Some files of a folder."""

    location: str
    files: Sequence[str]

    @property
    def name(self) -> str:
        return Path(self.location).name

    @cached_property
    def identity(self) -> str:
        known = xxhash.xxh3_128()
        for file in self.files:
            found = os.stat(file)
            known.update(os.fsencode(f"{file}\0{found.st_size}\0{found.st_mtime_ns}\n"))
        return known.hexdigest()

    @property
    def num_pictures(self) -> int:
        return len(self.files)

    def places(self, start: int, stop: int) -> list[Place | None]:
        return [Place(os.path.abspath(file)) for file in self.files[start:stop]]

    def names(self) -> list[str]:
        return list(self.files)


def place_of(tar: str, members: Sequence[Member]) -> Place | None:
    """Of a sample's picture."""
    return next((Place(tar, member) for member in members if member.suffix in PICTURE_SUFFIXES), None)


def units_at(location: str) -> tuple[Sequence[Unit], list[Refusal]]:
    """The pictures of shards, or all picture files of a folder and those below it; and what is left out there.

    Raises:
        UserError: there is no picture.
        ShardError: the shards are damaged.
    """
    path = local_path(location)
    if not path.is_dir() or any(path.glob("*.tar")):
        index = open_index(location)
        return [ShardUnit(index, number) for number in range(len(index.shards))], []
    try:
        found = find_pictures(path)
    except OSError as error:
        raise UserError(f"{shown(location)}: {error.strerror}") from error
    if not found.paths:
        left_out = f"; left out are\n{table_of_reasons(found.refusals)}" if found.refusals else ""
        raise UserError(f"{shown(location)} holds no picture ({', '.join(PICTURE_ENDINGS)}) and no shard{left_out}")
    files = [os.path.join(path, each) for each in found.paths]
    starts = range(0, len(files), FILES_AT_ONCE)
    return [FilesUnit(location, files[start : start + FILES_AT_ONCE]) for start in starts], found.refusals
