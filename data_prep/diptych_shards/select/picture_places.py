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
from diptych.data.shard_index_file import MAX_MEMBER_BYTES, Sample, Shard
from diptych.data.shards import ShardIndex, open_index, read_sample
from diptych.errors import UserError
from diptych.files import local_path
from diptych.terminal import shown
from diptych_shards.refusals import Refusal, table_of_reasons

FILES_AT_ONCE = 10_000


@dataclass(frozen=True)
class Place:
    """Where the bytes of one picture are: a file, or the first picture of a sample."""

    path: str
    """Of the file, or of the tar."""
    sample: Sample | None = None
    """None for a file by itself."""

    def read(self) -> bytes:
        """The picture's bytes.

        Raises:
            OSError: the file cannot be read.
            ShardError: the tar cannot be read, or is damaged there.
        """
        if self.sample is None:
            with open(self.path, "rb") as file:
                return file.read(MAX_MEMBER_BYTES + 1)
        suffix = str(self.sample.picture_suffix)
        return read_sample(self.sample, suffix)[suffix]


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
        return [place_of(sample) for sample in self.index.samples(self.number, range(start, stop))]

    def names(self) -> list[str]:
        return [f"{self._shard.path}/{key}" for key in self.index.keys(self.number)]

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
        return [Place(file) for file in self.files[start:stop]]

    def names(self) -> list[str]:
        return list(self.files)


def place_of(sample: Sample) -> Place | None:
    """Where a sample's picture is; None if it has none."""
    return None if sample.picture_suffix is None else Place(str(sample.shard.path), sample)


def units_at(location: str) -> tuple[Sequence[Unit], list[Refusal]]:
    """The pictures of shards, or all picture files of a folder and its subfolders; and what is left out there.

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
