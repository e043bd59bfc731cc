"""Read samples of a shard from its index file, without keeping its member table in memory.

A table takes 0.9 MB for 10,000 samples, and a loader process may read thousands of shards at a time. The system's cache
of files keeps the tables once for all processes of a machine, and gives that memory back when something else needs it.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from diptych.data.shard_cache import MORE_FILES
from diptych.data.shard_index_file import (
    ALLOWED_SUFFIXES,
    FOLDER_LIST,
    MEMBER_ROW,
    SAMPLE_ROW,
    Member,
    Sample,
    Shard,
    ShardError,
    UnreachableShardError,
    check_index,
    index_path,
)
from diptych.files import NO_DESCRIPTORS, OpenFile
from diptych.terminal import shown

_ENDS = struct.Struct("<4I")
"""Two SAMPLE_ROWs: those of the sample before and of the sample."""
_MEMBER = struct.Struct("<BQIQ")
"""A MEMBER_ROW."""

Read = Callable[[int, int], bytes]
"""Bytes of an index file, by their number and where they start."""


class Layout(NamedTuple):
    """Where the parts of an index file start. It holds for a file of which the whole was checked."""

    device: int
    inode: int
    num_bytes: int
    changed_ns: int
    samples_at: int
    members_at: int
    keys_at: int


class Table:
    """The samples of one shard, read from its open index file when they are asked for."""

    def __init__(self, shard: Shard, checked: Layout | None = None):
        """checked: the layout that an earlier Table of the shard found; the same file is not checked again.

        Raises:
            ShardError: the index file cannot be read, is damaged, or belongs to another tar by now.
        """
        self.shard = shard
        try:
            self._file, self.layout = self._open(checked)
        except UnreachableShardError:
            raise
        except ShardError:
            if shard.origin is None:
                raise
            shard.origin.cache.fetch_index(shard)
            self._file, self.layout = self._open(None)

    def sample(self, row: int) -> Sample:
        return self._sample(row, self._read)

    def samples(self, rows: Iterable[int]) -> Iterator[Sample]:
        """Many samples: reads the whole table, and keeps it in memory until the last of them."""
        table = self._read_all()
        return (self._sample(row, lambda size, start: table[start : start + size]) for row in rows)

    def hashes(self, suffixes: Sequence[str]) -> np.ndarray:
        """u64: the xxh3-64 of all members that have one of the suffixes."""
        at = self.layout
        members = np.frombuffer(self._read_all()[at.members_at : at.keys_at], MEMBER_ROW)
        return members["xxh3"][np.isin(members["suffix"], [ALLOWED_SUFFIXES.index(suffix) for suffix in suffixes])]

    def sample_hashes(self, suffix: str) -> np.ndarray:
        """u64[samples]: the xxh3-64 of each sample's member with the suffix; 0 where it has none."""
        at, table = self.layout, self._read_all()
        members = np.frombuffer(table[at.members_at : at.keys_at], MEMBER_ROW)
        ends = np.frombuffer(table[at.samples_at : at.members_at], SAMPLE_ROW)["member_end"]
        places = np.flatnonzero(members["suffix"] == ALLOWED_SUFFIXES.index(suffix))
        found = np.zeros(len(ends), dtype=np.uint64)
        found[np.searchsorted(ends, places, side="right")] = members["xxh3"][places]
        return found

    def keys(self) -> list[str]:
        at, table = self.layout, self._read_all()
        ends = np.frombuffer(table[at.samples_at : at.members_at], SAMPLE_ROW)["key_end"].tolist()
        keys = table[at.keys_at :]
        return [keys[start:end].decode() for start, end in zip([0, *ends], ends, strict=False)]

    def _sample(self, row: int, read: Read) -> Sample:
        if not 0 <= row < self.shard.samples:
            raise IndexError(f"row {row} of a shard of {self.shard.samples} samples")
        at, row_bytes = self.layout, SAMPLE_ROW.itemsize
        start = at.samples_at + row * row_bytes
        try:
            ends = read(2 * row_bytes, start - row_bytes) if row else bytes(row_bytes) + read(row_bytes, start)
            key_start, member_start, key_end, member_end = _ENDS.unpack(ends)
            key = read(key_end - key_start, at.keys_at + key_start).decode()
            rows = read((member_end - member_start) * _MEMBER.size, at.members_at + member_start * _MEMBER.size)
            members = [Member(ALLOWED_SUFFIXES[suffix], *place) for suffix, *place in _MEMBER.iter_unpack(rows)]
        except OSError as error:
            raise unreadable(index_path(self.shard.path), error) from error
        except (ValueError, IndexError) as error:  # it was whole when it was opened
            raise _damaged(self.shard) from error
        return Sample(self.shard, key, tuple(members))

    def _read(self, num_bytes: int, start: int) -> bytes:
        """Bytes of the index file.

        Raises:
            ValueError: the file ends before.
        """
        if start + num_bytes <= self.layout.num_bytes:
            read = os.pread(self._file.descriptor, num_bytes, start)
            if len(read) == num_bytes:
                return read
        raise ValueError(f"the file ends before byte {start + num_bytes}")

    def _read_all(self) -> bytes:
        try:
            return self._read(self.layout.num_bytes, 0)
        except OSError as error:
            raise unreadable(index_path(self.shard.path), error) from error
        except ValueError as error:
            raise _damaged(self.shard) from error

    def _open(self, checked: Layout | None) -> tuple[OpenFile, Layout]:
        """Open the index file, and check it unless it is the one that was checked."""
        path = index_path(self.shard.path)
        try:
            file = OpenFile(os.open(path, os.O_RDONLY))
            status = os.fstat(file.descriptor)
            identity = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
            if checked is not None and checked[: len(identity)] == identity:
                return file, checked
            whole = os.pread(file.descriptor, status.st_size, 0)
        except OSError as error:
            raise unreadable(path, error) from error
        return file, Layout(*identity, *_parts(whole, self.shard))


def _parts(index_file: bytes, shard: Shard) -> tuple[int, int, int]:
    """Check an index file; return where its samples, its members and its keys start."""
    try:
        header = check_index(index_file, shard.name)
    except ValueError as error:
        raise _damaged(shard) from error
    if header.sha256 != shard.sha256 or header.samples != shard.samples:
        raise ShardError(
            f"{shown(shard.path)} was indexed again since it was opened, or listed in {FOLDER_LIST}; "
            f"`diptych-shards index {shown(shard.path.parent)}` writes that again, then open it again"
        )
    samples_at = len(index_file) - header.table_bytes
    members_at = samples_at + header.samples * SAMPLE_ROW.itemsize
    return samples_at, members_at, members_at + header.members * MEMBER_ROW.itemsize


def _damaged(shard: Shard) -> ShardError:
    return ShardError(f"{shown(index_path(shard.path))} is damaged; delete it to index the tar again")


def unreadable(path: Path, error: OSError) -> ShardError:
    """The error of a tar or an index file that the system does not open or read."""
    if error.errno in NO_DESCRIPTORS:
        return UnreachableShardError(f"{shown(path)} cannot be opened: {error.strerror}; {MORE_FILES}")
    return ShardError(f"{shown(path)} cannot be read: {error.strerror}; bring it back, and try again")
