"""The index file of a shard: one JSON line, the member table, the keys. `shard_table.py` reads the last two.

It is written last and whole, so a shard is complete if it has an index. The first line records how many samples the
tar holds, its size and its sha256; the table records where each member is and what its bytes hash to (xxh3-64).
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import xxhash

from diptych.data.picture_formats import PICTURE_ENDINGS
from diptych.errors import UserError
from diptych.files import commit_file
from diptych.terminal import shown

if TYPE_CHECKING:
    from diptych.data.shard_cache import ShardCache

PICTURE_SUFFIXES = tuple(ending[1:] for ending in PICTURE_ENDINGS)
ALLOWED_SUFFIXES = (
    *("jpg", "jpeg", "png", "webp", "txt", "json", "cls", "avif"),
    *("jpe", "jfif", "gif", "bmp", "tif", "tiff", "heic", "heif", "npy"),
)
"""Members with another suffix are never read: some formats execute code when decoded. cls is the number of a class, npy
an array that says for each class whether it is in the picture; it is read without pickle.

The order is part of the format: new suffixes go to the end.
"""

INDEX_FOLDER = "_index"
FOLDER_LIST = "all.index"
MAX_MEMBER_BYTES = 64 << 20
MAX_HEADER_BYTES = 1 << 16
SAMPLE_ROW = np.dtype([("key_end", "<u4"), ("member_end", "<u4")])
MEMBER_ROW = np.dtype([("suffix", "u1"), ("offset", "<u8"), ("size", "<u4"), ("xxh3", "<u8")])
"""Where the keys and members of a sample end among those of all, and a member of the table."""

_FORMAT = "diptych-shard-index-1"


class ShardError(UserError):
    """A shard or its index is missing, incomplete, damaged or not allowed."""


class UnreachableShardError(ShardError):
    """Shards cannot be read for a reason that is no fault of one sample. It ends a run, which would reject them all."""


class Origin(NamedTuple):
    """The address of a tar, and the cache of this machine in which it is kept."""

    url: str
    cache: ShardCache


@dataclass(frozen=True)
class Shard:
    """One tar, as its index describes it."""

    path: Path
    samples: int
    num_bytes: int
    sha256: str
    origin: Origin | None = None
    """None for a tar on this machine; else `path` is its place in the cache."""

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def location(self) -> str:
        """Its address or path, for people."""
        return self.origin.url if self.origin else str(self.path)


class Member(NamedTuple):
    """One file of a sample: where its bytes are in the tar, and their xxh3-64."""

    suffix: str
    offset: int
    size: int
    xxh3: int


@dataclass(frozen=True)
class Sample:
    """One sample of a shard: its key, and which files it has."""

    shard: Shard
    key: str
    members: tuple[Member, ...]

    @property
    def name(self) -> str:
        """The key after the name of its shard, as people look for it."""
        return f"{self.shard.name}/{self.key}"

    @property
    def suffixes(self) -> tuple[str, ...]:
        return tuple(member.suffix for member in self.members)

    @property
    def picture_suffix(self) -> str | None:
        """Of its first picture; None if it has none."""
        return next((member.suffix for member in self.members if member.suffix in PICTURE_SUFFIXES), None)

    @property
    def stretch(self) -> tuple[int, int]:
        """Where its members start in the tar, and how many bytes they take with what is between them."""
        first, last = self.members[0], self.members[-1]
        return first.offset, last.offset + last.size - first.offset


@dataclass(frozen=True)
class ShardHeader:
    """Line 1 of an index file."""

    format: str
    name: str
    samples: int
    members: int
    bytes: int
    sha256: str
    skipped: dict[str, int]
    """Members of a third-party tar that are left out, by reason."""
    table_bytes: int
    table_xxh3: str
    header_xxh3: str
    """Of this line's JSON without this field."""


def index_path(tar: Path) -> Path:
    return tar.parent / INDEX_FOLDER / f"{tar.name}.index"


def folder_list_path(folder: Path) -> Path:
    """The file that lists all shards of a folder (`shard_list.py`)."""
    return folder / INDEX_FOLDER / FOLDER_LIST


def read_shard(path: Path) -> Shard:
    with open(index_path(path), "rb") as file:
        header = _read_header(file, path)
    with open(path, "rb") as tar:  # a tar that cannot be opened is found now, not as thousands of damaged samples
        size = os.fstat(tar.fileno()).st_size
    if size != header.bytes:
        kind = "truncated" if size < header.bytes else "longer than it was"
        raise ShardError(f"{shown(path)} has {size} bytes, its index says {header.bytes}: it is {kind}; "
                         f"restore it, or delete {shown(index_path(path))} to index what is left")  # fmt: skip
    return Shard(path, header.samples, header.bytes, header.sha256)


def _read_header(file: io.BufferedReader, tar: Path) -> ShardHeader:
    try:
        return parse_header(file.readline(MAX_HEADER_BYTES), os.fstat(file.fileno()).st_size, tar.name)
    except ValueError as error:
        raise ShardError(f"{shown(index_path(tar))} is damaged; delete it to index the tar again") from error


def parse_header(line: bytes, num_bytes: int | None, name: str) -> ShardHeader:
    """The first line of the index file of the tar `name`, whose index file has `num_bytes` bytes; None if unknown.

    Raises:
        ValueError: the line is not whole, belongs to another tar or to a file of another size.
    """
    try:
        fields = json.loads(line)
        header = ShardHeader(**fields)
        header_bytes = json.dumps({k: v for k, v in fields.items() if k != "header_xxh3"}).encode()
    except (TypeError, AttributeError) as error:
        raise ValueError("it is no header") from error
    is_whole = (
        header.format == _FORMAT
        and header.name == name
        and header.header_xxh3 == xxhash.xxh3_64_hexdigest(header_bytes)
        and num_bytes in (None, len(line) + header.table_bytes)
    )
    if not is_whole:
        raise ValueError("it is not whole")
    return header


def check_index(data: bytes, name: str) -> ShardHeader:
    """The header of the index file of the tar `name`, from the bytes of the whole file.

    Raises:
        ValueError: it is damaged or belongs to another tar.
    """
    line = data[: data.find(b"\n", 0, MAX_HEADER_BYTES) + 1]
    header = parse_header(line, len(data), name)
    if xxhash.xxh3_64_hexdigest(memoryview(data)[len(line) :]) != header.table_xxh3:
        raise ValueError("its table is not whole")
    return header


def write_index(path: Path, table: TableBuilder, num_bytes: int, sha256: str, *, skipped: dict[str, int]) -> None:
    body = table.to_bytes()
    fields: dict[str, Any] = {
        "format": _FORMAT,
        "name": path.name,
        "samples": len(table),
        "members": table.num_members,
        "bytes": num_bytes,
        "sha256": sha256,
        "skipped": skipped,
        "table_bytes": len(body),
        "table_xxh3": xxhash.xxh3_64_hexdigest(body),
    }
    header = ShardHeader(**fields, header_xxh3=xxhash.xxh3_64_hexdigest(json.dumps(fields).encode()))
    folder_list_path(path.parent).unlink(missing_ok=True)  # it would list the shard as it was before
    commit_file(index_path(path), json.dumps(asdict(header)).encode() + b"\n" + body)


class TableBuilder:
    """Collects samples for an index file."""

    def __init__(self) -> None:
        self._keys: list[bytes] = []
        self._key_bytes = 0
        self._samples: list[tuple[int, int]] = []
        self._members: list[tuple[int, int, int, int]] = []

    def __len__(self) -> int:
        return len(self._samples)

    @property
    def num_members(self) -> int:
        return len(self._members)

    def add(self, key: str, members: Sequence[Member]) -> None:
        self._keys.append(key.encode())
        self._key_bytes += len(self._keys[-1])
        self._members += [(ALLOWED_SUFFIXES.index(m.suffix), m.offset, m.size, m.xxh3) for m in members]
        self._samples.append((self._key_bytes, len(self._members)))

    def to_bytes(self) -> bytes:
        samples, members = np.array(self._samples, SAMPLE_ROW), np.array(self._members, MEMBER_ROW)
        return samples.tobytes() + members.tobytes() + b"".join(self._keys)
