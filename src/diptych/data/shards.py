"""Shards: plain tar files of image-text pairs, each with an exact index next to it.

    FOLDER/00000.tar                 members KEY.jpg (or png, webp), KEY.txt, KEY.json, sample after sample
    FOLDER/_index/00000.tar.index    one JSON line (ShardHeader), the member table, the keys
    FOLDER/_index/all.index          samples, bytes and sha256 of each shard (`shard_list.py`)

The tars are written by the standard library and read by anything that reads webdataset. The index makes them
exact: they record how many samples there are, where each member is, and what its bytes hash to, so that a sample is
read by one `pread` a member and damage is noticed. The index is written last: a shard that has one is complete.

`all.index` only saves time: a folder of 100,000 shards is opened by reading one file, and one look at each tar's size.
The command that makes a folder's shards writes it at the end, and `diptych-shards index FOLDER` writes it again. It is
not used for a tar of another size or without an index of its own, and is removed when an index is written.
"""

from __future__ import annotations

import bisect
import hashlib
import os
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import groupby
from typing import Generic, TypeVar

import numpy as np
import xxhash

from diptych.data.foreign_shards import index_shard
from diptych.data.remote_shards import remote_shards
from diptych.data.shard_cache import OPEN_FILES, ShardCache
from diptych.data.shard_index_file import (
    Member,
    Sample,
    Shard,
    ShardError,
)
from diptych.data.shard_list import ShardList, read_shards
from diptych.data.shard_locations import tars_at
from diptych.data.shard_table import Layout, Table, unreadable
from diptych.files import OpenFile
from diptych.machine import open_files_limit
from diptych.remote_files import is_elsewhere
from diptych.terminal import shown

MAX_OPEN_SHARDS = OPEN_FILES // 4
"""How many tars a process keeps open at most; likewise index files, and shards held for batches to come. A rank that
reads 128 rows of each batch reads about 200 shards at a time, one that reads 4,096 rows up to 5,000."""
COUNTS = ("bytes_read", "cache_hits", "cache_misses")
"""What a ShardIndex counts as it reads: bytes of members; remote shards that were in the cache when they were needed,
and those that were not."""

Key = TypeVar("Key")
File = TypeVar("File")


class ShardIndex:
    """All samples of some shards, numbered from 0 in the order of `shards`."""

    def __init__(self, shards: Iterable[Shard]):
        self.shards = shards if isinstance(shards, ShardList) else ShardList.of(shards)
        self.counts = self.shards.samples
        self.total_samples = int(self.counts.sum())
        self._ends = np.cumsum(self.counts)
        self._end_list = self._ends.tolist()
        self.counts_of_reads: Counter[str] = Counter()
        """Numbers by the names of COUNTS, of this process."""
        self._tars = _KeptOpen(self._open_tar)
        self._tables = _KeptOpen(self._open_table)
        self._layouts: dict[int, Layout] = {}
        """By the number of the shard: of index files that this process has checked."""

    def __len__(self) -> int:
        return self.total_samples

    @property
    def fingerprint(self) -> str:
        """sha256 over names, counts and contents: equal for equal shards in equal order."""
        lines = "".join(f"{sha256.hex()} {samples} {name}\n" for name, (samples, _, sha256) in self.shards.rows())
        return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()

    def locate(self, sample: int) -> tuple[int, int]:
        """Shard number and row of a sample."""
        if not 0 <= sample < self.total_samples:
            raise IndexError(f"sample {sample} of an index of {self.total_samples}")
        shard_number = bisect.bisect_right(self._end_list, sample)
        start = self._end_list[shard_number - 1] if shard_number else 0
        return shard_number, int(sample) - start

    def locate_many(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """i64 shard numbers and i64 rows of many samples."""
        samples = np.asarray(samples, dtype=np.int64)
        if len(samples) and not (samples.min() >= 0 and samples.max() < self.total_samples):
            raise IndexError(f"sample {samples.min()} or {samples.max()} of an index of {self.total_samples}")
        shard_numbers = np.searchsorted(self._ends, samples, side="right")
        return shard_numbers, samples - self._ends[shard_numbers] + self.counts[shard_numbers]

    def member_hashes(self, shard_number: int, suffixes: Sequence[str]) -> np.ndarray:
        """u64: the xxh3-64 of all members of a shard that have one of the suffixes."""
        return self._tables[shard_number].hashes(suffixes)

    def sample_hashes(self, shard_number: int, suffix: str) -> np.ndarray:
        """u64: of each sample of a shard the xxh3-64 of its member with the suffix; 0 where it has none."""
        return self._tables[shard_number].sample_hashes(suffix)

    def keys(self, shard_number: int) -> list[str]:
        """The keys of a shard's samples, in their order."""
        return self._tables[shard_number].keys()

    def sample(self, shard_number: int, row: int) -> Sample:
        """One sample of a shard.

        Raises:
            ShardError: the shard's index file is damaged, or belongs to another tar by now.
        """
        return self._tables[shard_number].sample(row)

    def samples(self, shard_number: int | None = None, rows: Iterable[int] | None = None) -> Iterator[Sample]:
        """All samples in order, those of one shard, or those in some rows of one shard.

        Raises:
            ShardError: as `sample` does.
        """
        for number in range(len(self.shards)) if shard_number is None else (shard_number,):
            table = self._tables[number]
            yield from table.samples(range(table.shard.samples) if rows is None else rows)

    def read(self, sample: Sample, *suffixes: str) -> dict[str, bytes]:
        """The sample's files by suffix, checked: those with one of these suffixes, or all where none is named.

        Tars stay open for the samples to come.

        Raises:
            ShardError: the tar cannot be read, is not as long as its index says, or the bytes are not those that were
                indexed.
        """
        read = self._tars[sample.shard].read(sample, suffixes)
        self.counts_of_reads["bytes_read"] += sum(map(len, read.values()))
        return read

    def announce(self, samples: np.ndarray) -> None:
        """Ask the kernel to fetch samples that will be read soon from the disk; those of remote shards are left out."""
        for number, row in zip(*map(np.ndarray.tolist, self.locate_many(samples)), strict=True):
            if not is_elsewhere(self.shards.paths[number]):
                with suppress(ShardError, OSError):  # reported when the sample is read
                    sample = self.sample(number, row)
                    self._tars[sample.shard].announce(*sample.stretch)

    def _open_tar(self, shard: Shard) -> _OpenTar:
        """Open a tar; count whether a remote one was in the cache."""
        if shard.origin is not None:
            self.counts_of_reads["cache_hits" if shard.path.exists() else "cache_misses"] += 1
            # What was deleted from the cache stays on the disk as long as it is open.
            self._tars.close_if(lambda tar: tar.is_deleted)
        return _OpenTar(shard)

    def _open_table(self, shard_number: int) -> Table:
        table = Table(self.shards[shard_number], self._layouts.get(shard_number))
        self._layouts[shard_number] = table.layout
        return table

    def __reduce__(self) -> tuple[object, ...]:
        """Other processes open files of their own."""
        return ShardIndex, (self.shards,)


def open_index(
    location: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    cache: ShardCache | None = None,
    *,
    index_missing: bool = True,
) -> ShardIndex:
    """Open one or several folders, tar files or brace patterns (`shards/{00000..00099}.tar`) as one index.

    Shards are in the order of the locations, and by name within one location. A tar without an index is indexed
    first, if its folder is writable; without `index_missing` it is refused. Locations at `s3://`, `https://` and the
    like are opened by their index files; their shards are fetched into the cache when they are read.

    Raises:
        ShardError: if something is missing, empty, damaged, not of the size that its index gives, or refused.
    """
    locations = [location] if isinstance(location, str | os.PathLike) else list(location)
    cache = cache or ShardCache()
    parts: list[ShardList] = []
    for elsewhere, some in groupby([os.fspath(one) for one in locations], is_elsewhere):
        if elsewhere:
            parts += [remote_shards(one, cache) for one in some]
        else:
            parts.append(
                read_shards([path for one in some for path in tars_at(one)], index_shard if index_missing else None)
            )
    shards = ShardList.joined(parts, cache)
    refuse_twice(shards.paths)
    return ShardIndex(shards)


def refuse_twice(tars: Sequence[str]) -> None:
    """Raise ShardError if a tar is given twice, also by another path or a symbolic link."""
    local = [tar for tar in tars if not is_elsewhere(tar)]
    folders = set(map(os.path.dirname, local)) if len(tars) > 1 else ()
    real_folders = {folder: os.path.realpath(folder) for folder in folders}
    links = {folder: _links_in(folder) for folder in folders}

    def real(tar: str) -> str:
        folder, name = os.path.split(tar)
        if folder not in real_folders:
            return tar
        return os.path.realpath(tar) if name in links[folder] else f"{real_folders[folder]}/{name}"

    twice = [place for place, times in Counter(map(real, tars)).items() if times > 1]
    if twice:
        raise ShardError(f"shard {twice[0]!r} is given more than once; name every shard once")


def _links_in(folder: str) -> set[str]:
    """The names of a folder's symbolic links, by its listing: no request for each file."""
    with os.scandir(folder or ".") as entries:
        return {entry.name for entry in entries if entry.is_symlink()}


def read_sample(sample: Sample, *suffixes: str) -> dict[str, bytes]:
    """Read a sample as `ShardIndex.read` does, without the index: for a sample that was sent to another process."""
    return _OpenTar(sample.shard).read(sample, suffixes)


class _OpenTar:
    """An open tar of the size that its index states."""

    def __init__(self, shard: Shard):
        try:
            if shard.origin is None:
                self._file = OpenFile(os.open(shard.path, os.O_RDONLY))
            else:
                self._file = shard.origin.cache.open(shard)
        except OSError as error:
            raise unreadable(shard.path, error) from error
        size = os.fstat(self._file.descriptor).st_size
        if size != shard.num_bytes:
            raise ShardError(f"{shown(shard.path)}: has {size} bytes, its index says {shard.num_bytes}")

    @property
    def is_deleted(self) -> bool:
        return os.fstat(self._file.descriptor).st_nlink == 0

    def read(self, sample: Sample, suffixes: Sequence[str]) -> dict[str, bytes]:
        try:
            return self._read(sample, suffixes)
        except ShardError:
            origin = sample.shard.origin
            if origin is None or not origin.cache.drop_if_damaged(sample.shard, self._file):
                raise
            self._file = origin.cache.open(sample.shard)
            return self._read(sample, suffixes)

    def _read(self, sample: Sample, suffixes: Sequence[str]) -> dict[str, bytes]:
        read = {}
        for member in sample.members:
            if not suffixes or member.suffix in suffixes:
                try:
                    read[member.suffix] = self._read_member(member)
                except ShardError as error:
                    name = f"{shown(sample.shard.path)}: {shown(sample.key)}.{member.suffix}"
                    raise ShardError(f"{name}: at byte {member.offset}: {error}") from error
                except OSError as error:
                    raise unreadable(sample.shard.path, error) from error
        return read

    def _read_member(self, member: Member) -> bytes:
        data = os.pread(self._file.descriptor, member.size, member.offset)
        if len(data) != member.size:
            raise ShardError(f"{len(data)} of {member.size} bytes: the tar is truncated")
        if xxhash.xxh3_64_intdigest(data) != member.xxh3:
            raise ShardError(f"the {member.size} bytes are not those that were indexed")
        return data

    def announce(self, start: int, num_bytes: int) -> None:
        if hasattr(os, "posix_fadvise"):  # macOS has none
            os.posix_fadvise(self._file.descriptor, start, num_bytes, os.POSIX_FADV_WILLNEED)


def max_open_shards() -> int:
    """MAX_OPEN_SHARDS, or fewer if this process may open few files."""
    return int(min(MAX_OPEN_SHARDS, open_files_limit() / 4))


class _KeptOpen(Generic[Key, File]):
    """The files used last, which are kept open, as many as `max_open_shards` says.

    Threads may share it.
    """

    def __init__(self, open_file: Callable[[Key], File]) -> None:
        self._open_file = open_file
        self._files: OrderedDict[Key, File] = OrderedDict()
        self._lock = threading.Lock()

    def __getitem__(self, key: Key) -> File:
        with self._lock:
            if key in self._files:
                self._files.move_to_end(key)
                return self._files[key]
        file = self._open_file(key)  # may take long, if a remote shard must be fetched
        with self._lock:
            self._files[key] = file
            while len(self._files) > max_open_shards():
                self._files.popitem(last=False)
        return file

    def close_if(self, is_unwanted: Callable[[File], bool]) -> None:
        """Close files, each when nobody reads it any more."""
        with self._lock:
            for key in [key for key, file in self._files.items() if is_unwanted(file)]:
                del self._files[key]
