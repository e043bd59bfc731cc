"""Shards: plain tar files of image-text pairs, each with an exact index beside it.

    FOLDER/00000.tar                 members KEY.jpg (or png, webp), KEY.txt, KEY.json, sample after sample
    FOLDER/_index/00000.tar.index    one JSON line (ShardHeader), the member table, the keys

The tars are written by the standard library and read by anything that reads webdataset. The index makes them
exact: how many samples, where each member is, and what its bytes hash to, so that a sample is read by one
`pread` and no damage passes unseen. A shard is complete when its index stands; the index is written last.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import json
import logging
import os
import re
import threading
from collections import Counter, OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import xxhash
from braceexpand import braceexpand

from diptych.data.foreign_shards import index_shard
from diptych.data.picture_formats import PICTURE_ENDINGS
from diptych.data.shard_index_file import (
    INDEX_FOLDER,
    Member,
    Shard,
    ShardError,
    Table,
    index_path,
    read_shard,
    shown,
)
from diptych.files import local_path

TABLE_CACHE_BYTES = 128 << 20
"""Member tables held in memory per process; a shard of 10,000 samples takes about 0.9 MB."""

_TABLE_ENDINGS = (".csv", ".tsv", ".parquet", ".json", ".jsonl")
_MAX_SHARDS = 1_000_000

logger = logging.getLogger(__name__)


class ShardIndex:
    """All samples of some shards, numbered from 0 in the order of `shards`."""

    def __init__(self, shards: Sequence[Shard]):
        self.shards = tuple(shards)
        self.counts = np.array([shard.samples for shard in self.shards], dtype=np.int64)
        self.total_samples = int(self.counts.sum())
        self._ends = np.cumsum(self.counts)
        self._end_list = self._ends.tolist()
        self._tables = _TableCache()

    def __len__(self) -> int:
        return self.total_samples

    @property
    def fingerprint(self) -> str:
        """sha256 over names, counts and contents: equal for equal shards in equal order."""
        lines = "".join(f"{shard.sha256} {shard.samples} {shard.name}\n" for shard in self.shards)
        return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()

    def locate(self, sample: int) -> tuple[int, int]:
        """Shard number and row of a sample."""
        if not 0 <= sample < self.total_samples:
            raise IndexError(f"sample {sample} of an index of {self.total_samples}")
        shard_number = bisect.bisect_right(self._end_list, sample)
        return shard_number, int(sample) - self._end_list[shard_number] + self.shards[shard_number].samples

    def locate_many(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """i64 shard numbers and i64 rows of many samples."""
        samples = np.asarray(samples, dtype=np.int64)
        if len(samples) and not (samples.min() >= 0 and samples.max() < self.total_samples):
            raise IndexError(f"sample {samples.min()} or {samples.max()} of an index of {self.total_samples}")
        shard_numbers = np.searchsorted(self._ends, samples, side="right")
        return shard_numbers, samples - self._ends[shard_numbers] + self.counts[shard_numbers]

    def member_hashes(self, shard_number: int, suffixes: Sequence[str]) -> np.ndarray:
        """u64: the xxh3-64 of all members of a shard that have one of the suffixes."""
        return self._tables.get(self.shards[shard_number]).hashes(suffixes)

    def sample(self, shard_number: int, row: int) -> tuple[str, tuple[Member, ...]]:
        """Key and members of one sample.

        Raises:
            ShardError: if the shard's index file is damaged or belongs to another tar by now.
        """
        return self._tables.get(self.shards[shard_number]).sample(row)


def open_index(location: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> ShardIndex:
    """The index of one or several folders, tar files or brace patterns (`shards/{00000..00099}.tar`).

    Shards stand in the order of the locations, by name within one. A tar without an index is indexed first,
    where its folder is writable.

    Raises:
        ShardError: if something is missing, empty, damaged, or not of the size that its index gives.
    """
    locations = [location] if isinstance(location, str | os.PathLike) else list(location)
    paths = [path for one in locations for path in tars_at(os.fspath(one))]
    twice = [path for path, times in Counter(os.path.realpath(path) for path in paths).items() if times > 1]
    if twice:
        raise ShardError(f"shard {twice[0]!r} is given more than once; name every shard once")
    return ShardIndex([read_shard(tar) if index_path(tar).exists() else index_shard(tar) for tar in paths])


def tars_at(location: str) -> list[Path]:
    """The tars of one folder, tar file or brace pattern, by name.

    Raises:
        ShardError: if there is none, or one is missing.
    """
    if re.match(r"(?!file:/)[a-z0-9+.-]{2,}:", location, re.IGNORECASE):
        raise ShardError(f"{location!r}: shards are read from local paths; copy them here first")
    location = os.fspath(local_path(location))
    if os.path.isdir(location):
        return _tars_in(Path(location))
    if os.path.exists(location) or "{" not in location:
        if "*" in location and not os.path.exists(location):
            raise ShardError(f"{location!r} does not exist; * is no pattern here: name the folder, or a range in "
                             f"braces, shards/{{00000..00099}}.tar")  # fmt: skip
        return [_existing_tar(location)]
    return sorted((_existing_tar(path) for path in _expanded(location)), key=lambda path: path.name)


def read_member(fd: int, member: Member) -> bytes:
    """The member's bytes, checked, from an open tar.

    Raises:
        ShardError: if the file is shorter than its index says, or the bytes are not those that were indexed.
    """
    data = os.pread(fd, member.size, member.offset)
    if len(data) != member.size:
        raise ShardError(f"at byte {member.offset}: {len(data)} of {member.size} bytes: the tar is truncated")
    if xxhash.xxh3_64_intdigest(data) != member.xxh3:
        raise ShardError(f"at byte {member.offset}: the {member.size} bytes are not those that were indexed")
    return data


def _expanded(pattern: str) -> list[str]:
    too_many = ShardError(f"{pattern!r} names more than {_MAX_SHARDS} shards")
    for first, last in re.findall(r"\{(-?\d+)\.\.(-?\d+)", pattern):
        if abs(int(last) - int(first)) >= _MAX_SHARDS:  # braceexpand would hold the whole range in memory
            raise too_many
    try:
        expanded = list(itertools.islice(braceexpand(pattern), _MAX_SHARDS + 1))
    except ValueError as error:  # braceexpand.UnbalancedBracesError
        raise ShardError(f"{pattern!r}: unbalanced braces") from error
    if len(expanded) > _MAX_SHARDS:
        raise too_many
    return expanded


def _existing_tar(path: str) -> Path:
    if not os.path.exists(path):
        raise ShardError(f"{path!r} does not exist")
    if not path.endswith(".tar") or not os.path.isfile(path):
        raise ShardError(f"{path!r} is neither a folder of shards nor a .tar file{_way_from_file(path)}")
    return Path(path)


def _tars_in(folder: Path) -> list[Path]:
    names = sorted(name for name in os.listdir(folder) if name.endswith(".tar") and not name.startswith("."))
    index_folder = folder / INDEX_FOLDER
    indexed = {path.name.removesuffix(".index") for path in index_folder.glob("*.tar.index")}
    if missing := sorted(indexed - set(names)):
        raise ShardError(f"{shown(folder)}: {missing[0]!r} is indexed but not there ({len(missing)} such). "
                         f"Bring it back, or delete {INDEX_FOLDER}/{missing[0]}.index")  # fmt: skip
    if not names:
        raise ShardError(f"{shown(folder)} holds no .tar file{_way_from_folder(folder)}")
    _warn_if_unfinished(index_folder)
    return [folder / name for name in names]


def _way_from_folder(folder: Path) -> str:
    """What to do with a folder that holds something else, or nothing."""
    with suppress(OSError):
        inner = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "_")))
        if with_tars := [path for path in inner if any(path.glob("*.tar"))]:
            return f", but {' and '.join(map(shown, with_tars[:2]))} do; name one of them"
        for place in (folder, *inner):
            if any(path.name.lower().endswith(PICTURE_ENDINGS) for path in place.iterdir()):
                return f", but pictures; `diptych-shards pack {shown(folder)} SHARDS` makes shards of them: name those"
    return "; `diptych-shards pack` or `diptych-shards build` makes shards"


def _way_from_file(path: str) -> str:
    ending = os.path.splitext(path)[1].lower()
    if ending in PICTURE_ENDINGS:
        return "; make shards of the pictures of its folder with `diptych-shards pack FOLDER SHARDS`"
    if ending in _TABLE_ENDINGS:
        return ("; make shards of what it names: `diptych-shards build` fetches URLs, "
                "`diptych-shards pack FOLDER SHARDS --table FILE` takes files")  # fmt: skip
    return ""


def _warn_if_unfinished(index_folder: Path) -> None:
    """`diptych-shards pack` keeps its state there; shards that are complete are good to use meanwhile."""
    try:
        state = json.loads((index_folder / "pack.json").read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return
    if isinstance(state, dict) and state.get("finished") is False:
        logger.warning("%s: its packing has not finished; these are the shards so far", index_folder.parent)


class _TableCache:
    """The tables used last, up to TABLE_CACHE_BYTES; threads may share it; it travels to processes empty."""

    def __init__(self) -> None:
        self._tables: OrderedDict[Path, Table] = OrderedDict()
        self._num_bytes = 0
        self._lock = threading.Lock()

    def get(self, shard: Shard) -> Table:
        with self._lock:
            table = self._tables.get(shard.path)
            if table is None:
                table = self._tables[shard.path] = Table(shard)
                self._num_bytes += table.num_bytes
                while self._num_bytes > TABLE_CACHE_BYTES and len(self._tables) > 1:
                    self._num_bytes -= self._tables.popitem(last=False)[1].num_bytes
            else:
                self._tables.move_to_end(shard.path)
        return table

    def __reduce__(self):
        return _TableCache, ()
