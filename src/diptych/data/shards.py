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
import io
import itertools
import json
import logging
import os
import re
import tarfile
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from braceexpand import braceexpand

from diptych.data.tar_scan import BLOCK_BYTES, BrokenTarError, scan_tar

PICTURE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
ALLOWED_SUFFIXES = (*PICTURE_SUFFIXES, "txt", "json")
"""Members with another suffix are never read: some formats execute code when decoded.

The order is part of the format.
"""

INDEX_FOLDER = "_index"
MAX_MEMBER_BYTES = 64 << 20
TABLE_CACHE_BYTES = 128 << 20
"""Member tables held in memory per process; a shard of 10,000 samples takes about 0.9 MB."""

_FORMAT = "diptych-shard-index-1"
_KEY = re.compile(r"[A-Za-z0-9_/-]{1,256}")
_MAX_SHARDS = 1_000_000
_SAMPLE_ROW = np.dtype([("key_end", "<u4"), ("member_end", "<u4")])
_MEMBER_ROW = np.dtype([("suffix", "u1"), ("offset", "<u8"), ("size", "<u4"), ("xxh3", "<u8")])

logger = logging.getLogger(__name__)


class ShardError(ValueError):
    """A shard or its index is missing, incomplete, damaged or not allowed."""


@dataclass(frozen=True)
class Shard:
    """What the index says of one tar."""

    path: Path
    samples: int
    num_bytes: int
    sha256: str

    @property
    def name(self) -> str:
        return self.path.name


@dataclass(frozen=True)
class Member:
    """One file of a sample: where its bytes are in the tar, and their xxh3-64."""

    suffix: str
    offset: int
    size: int
    xxh3: int


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
    paths = [path for one in locations for path in _tars_at(os.fspath(one))]
    twice = [path for path, times in Counter(os.path.realpath(path) for path in paths).items() if times > 1]
    if twice:
        raise ShardError(f"shard {twice[0]!r} is given more than once; name every shard once")
    return ShardIndex([_read_shard(tar) if _index_path(tar).exists() else index_shard(tar) for tar in paths])


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


class ShardWriter:
    """Writes one shard: `with ShardWriter(folder, 0) as writer: writer.add(key, {"jpg": ..., "txt": ...})`.

    Equal samples give equal bytes. The shard exists from `close` on, whole; leaving the block by an exception
    leaves nothing behind.
    """

    def __init__(self, folder: str | os.PathLike[str], name: str | int):
        """name: `00000.tar`, or its number."""
        self._path = Path(folder) / (f"{name:05d}.tar" if isinstance(name, int) else name)
        if not re.fullmatch(r"[^/\0]+\.tar", self._path.name) or self._path.name.startswith("."):
            raise ShardError(f"shard name {name!r} must be a file name that ends in .tar")
        if _index_path(self._path).exists():
            raise ShardError(f"{_shown(self._path)} is complete; delete it and its index to write it again")
        (self._path.parent / INDEX_FOLDER).mkdir(parents=True, exist_ok=True)
        self._partial = self._path.with_name(f"{self._path.name}.partial")
        self._table = _TableBuilder()
        self._keys: set[str] = set()
        self._file = _HashingFile(self._partial)
        self._tar = tarfile.TarFile(fileobj=self._file, mode="w", format=tarfile.PAX_FORMAT)  # type: ignore[arg-type]

    @property
    def num_bytes(self) -> int:
        """Bytes written so far."""
        return self._file.position

    def add(self, key: str, members: Mapping[str, bytes]) -> None:
        """Append one sample; the members stand in the order given.

        Raises:
            ShardError: if the key is malformed or not new, or a suffix is not allowed.
        """
        self._check(key, members)
        self._keys.add(key)
        rows = []
        for suffix, data in members.items():
            header = tarfile.TarInfo(f"{key}.{suffix}")
            header.size, header.mode = len(data), 0o644
            self._tar.addfile(header, io.BytesIO(data))
            offset = self._file.position - -(-len(data) // BLOCK_BYTES) * BLOCK_BYTES
            rows.append(Member(suffix, offset, len(data), xxhash.xxh3_64_intdigest(data)))
        self._tar.members.clear()  # type: ignore[attr-defined]  # only needed for reading
        self._table.add(key, rows)

    def close(self) -> Shard:
        """Commit: the tar becomes durable under its name, then its index."""
        self._tar.close()
        num_bytes, sha256 = self._file.commit()
        os.replace(self._partial, self._path)
        _sync_folder(self._path.parent)
        _write_index(self._path, self._table, num_bytes, sha256, skipped={})
        return Shard(self._path, len(self._table), num_bytes, sha256)

    def discard(self) -> None:
        """Leave nothing behind."""
        self._file.close()
        self._partial.unlink(missing_ok=True)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if error is not None:
            self.discard()
            return
        try:
            self.close()
        except BaseException:
            self.discard()
            raise

    def _check(self, key: str, members: Mapping[str, bytes]) -> None:
        if not _KEY.fullmatch(key) or key.startswith("/"):
            raise ShardError(f"key {key!r} must be 1 to 256 of A-Z a-z 0-9 _ - / and not begin with /")
        if key in self._keys:
            raise ShardError(f"key {key!r} is already in {self._path.name}; keys are unique")
        if not members:
            raise ShardError(f"sample {key!r} has no members")
        for suffix, data in members.items():
            if suffix not in ALLOWED_SUFFIXES:
                raise ShardError(f"{key!r}: suffix {suffix!r} is not one of {', '.join(ALLOWED_SUFFIXES)}")
            if len(data) > MAX_MEMBER_BYTES:
                raise ShardError(f"{key!r}.{suffix}: {len(data)} bytes; at most {MAX_MEMBER_BYTES} fit")


def index_shard(path: str | os.PathLike[str]) -> Shard:
    """Index a tar that something else wrote, grouping its members as webdataset does.

    Neighbours whose names agree up to the first dot of the file name are one sample. Members that are no
    plain files, have another suffix or a key that is no safe relative name are skipped and counted.

    Raises:
        ShardError: if the tar is compressed, damaged or truncated, or its folder is not writable.
    """
    path = Path(path)
    _make_index_folder(path)
    skipped: Counter[str] = Counter()
    with open(path, "rb") as file:
        num_bytes = os.fstat(file.fileno()).st_size
        try:
            table = _tabulate(_group(scan_tar(file), skipped, path), file.fileno())
        except BrokenTarError as error:
            raise ShardError(f"{_shown(path)}: {error}") from error
        sha256 = sha256_of(path)
        if os.fstat(file.fileno()).st_size != num_bytes:
            raise ShardError(f"{_shown(path)} changed while it was indexed; index it when it is complete")
    if skipped:
        table_of_reasons = ", ".join(f"{times} {why}" for why, times in sorted(skipped.items()))
        logger.warning("%s: skipped %s", _shown(path), table_of_reasons)
    _write_index(path, table, num_bytes, sha256, skipped=dict(sorted(skipped.items())))
    return Shard(path, len(table), num_bytes, sha256)


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Hex digest of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def commit_file(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, and durably."""
    # Ranks of one node may index the same tar at once; each writes its own file, the last rename wins.
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


# -- where shards are ---------------------------------------------------------------------------------------


def _tars_at(location: str) -> list[Path]:
    """The tars of one location, by name."""
    if re.match(r"[a-z0-9+.-]{2,}:", location, re.IGNORECASE):
        raise ShardError(f"{location!r}: shards are read from local paths; copy them here first")
    if os.path.isdir(location):
        return _tars_in(Path(location))
    if os.path.exists(location) or "{" not in location:
        return [_existing_tar(location)]
    return sorted((_existing_tar(path) for path in _expanded(location)), key=lambda path: path.name)


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
        raise ShardError(f"{path!r} is neither a folder of shards nor a .tar file")
    return Path(path)


def _tars_in(folder: Path) -> list[Path]:
    names = sorted(name for name in os.listdir(folder) if name.endswith(".tar") and not name.startswith("."))
    index_folder = folder / INDEX_FOLDER
    indexed = {path.name.removesuffix(".index") for path in index_folder.glob("*.tar.index")}
    if missing := sorted(indexed - set(names)):
        raise ShardError(f"{_shown(folder)}: {missing[0]!r} is indexed but not there ({len(missing)} such). "
                         f"Bring it back, or delete {INDEX_FOLDER}/{missing[0]}.index")  # fmt: skip
    if not names:
        raise ShardError(f"{_shown(folder)} holds no .tar file")
    _warn_if_unfinished(index_folder)
    return [folder / name for name in names]


def _warn_if_unfinished(index_folder: Path) -> None:
    """`diptych-shards pack` keeps its state there; shards that are complete are good to use meanwhile."""
    try:
        state = json.loads((index_folder / "pack.json").read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return
    if isinstance(state, dict) and state.get("finished") is False:
        logger.warning("%s: its packing has not finished; these are the shards so far", index_folder.parent)


# -- the index file -----------------------------------------------------------------------------------------


def _index_path(tar: Path) -> Path:
    return tar.parent / INDEX_FOLDER / f"{tar.name}.index"


def _read_shard(path: Path) -> Shard:
    with open(_index_path(path), "rb") as file:
        header = _read_header(file, path)
    size = path.stat().st_size
    if size != header.bytes:
        kind = "truncated" if size < header.bytes else "longer than it was"
        raise ShardError(f"{_shown(path)} has {size} bytes, its index says {header.bytes}: it is {kind}; "
                         f"restore it, or delete {_shown(_index_path(path))} to index it so")  # fmt: skip
    return Shard(path, header.samples, header.bytes, header.sha256)


def _read_header(file: io.BufferedReader, tar: Path) -> ShardHeader:
    damaged = ShardError(f"{_shown(_index_path(tar))} is damaged; delete it to index the tar again")
    line = file.readline(1 << 16)
    try:
        fields = json.loads(line)
        header = ShardHeader(**fields)
        header_bytes = json.dumps({k: v for k, v in fields.items() if k != "header_xxh3"}).encode()
    except (ValueError, TypeError, AttributeError) as error:
        raise damaged from error
    is_whole = (
        header.format == _FORMAT
        and header.name == tar.name
        and header.header_xxh3 == xxhash.xxh3_64_hexdigest(header_bytes)
        and os.fstat(file.fileno()).st_size == len(line) + header.table_bytes
    )
    if not is_whole:
        raise damaged
    return header


def _write_index(path: Path, table: _TableBuilder, num_bytes: int, sha256: str, *, skipped: dict[str, int]) -> None:
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
    commit_file(_index_path(path), json.dumps(asdict(header)).encode() + b"\n" + body)


class _TableBuilder:
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
        samples, members = np.array(self._samples, _SAMPLE_ROW), np.array(self._members, _MEMBER_ROW)
        return samples.tobytes() + members.tobytes() + b"".join(self._keys)


class _Table:
    """The members of one shard, as its index file holds them."""

    def __init__(self, shard: Shard):
        with open(_index_path(shard.path), "rb") as file:
            header = _read_header(file, shard.path)
            body = file.read()
        if header.sha256 != shard.sha256 or header.samples != shard.samples:
            raise ShardError(f"{_shown(shard.path)} was indexed anew since it was opened; open it again")
        if xxhash.xxh3_64_hexdigest(body) != header.table_xxh3:
            raise ShardError(f"{_shown(_index_path(shard.path))} is damaged; delete it to index the tar anew")
        members_at = header.samples * _SAMPLE_ROW.itemsize
        keys_at = members_at + header.members * _MEMBER_ROW.itemsize
        self.num_bytes = len(body)
        self._samples = np.frombuffer(body, _SAMPLE_ROW, header.samples)
        self._members = np.frombuffer(body, _MEMBER_ROW, header.members, members_at)
        self._keys = body[keys_at:]

    def sample(self, row: int) -> tuple[str, tuple[Member, ...]]:
        if not 0 <= row < len(self._samples):
            raise IndexError(f"row {row} of a shard of {len(self._samples)} samples")
        key_start, member_start = self._samples[row - 1].item() if row else (0, 0)
        key_end, member_end = self._samples[row].item()
        rows = self._members[member_start:member_end].tolist()
        return self._keys[key_start:key_end].decode(), tuple(
            Member(ALLOWED_SUFFIXES[suffix], offset, size, xxh3) for suffix, offset, size, xxh3 in rows
        )


class _TableCache:
    """The tables used last, up to TABLE_CACHE_BYTES; threads may share it; it travels to processes empty."""

    def __init__(self) -> None:
        self._tables: OrderedDict[Path, _Table] = OrderedDict()
        self._num_bytes = 0
        self._lock = threading.Lock()

    def get(self, shard: Shard) -> _Table:
        with self._lock:
            table = self._tables.get(shard.path)
            if table is None:
                table = self._tables[shard.path] = _Table(shard)
                self._num_bytes += table.num_bytes
                while self._num_bytes > TABLE_CACHE_BYTES and len(self._tables) > 1:
                    self._num_bytes -= self._tables.popitem(last=False)[1].num_bytes
            else:
                self._tables.move_to_end(shard.path)
        return table

    def __reduce__(self):
        return _TableCache, ()


# -- writing and indexing -----------------------------------------------------------------------------------


class _HashingFile:
    """A file for tarfile to write to, hashed on the way."""

    def __init__(self, path: Path):
        self.position = 0
        self._file = open(path, "wb", buffering=1 << 20)  # closed by commit or close
        self._sha256 = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self._sha256.update(data)
        self.position += len(data)
        return self._file.write(data)

    def tell(self) -> int:
        return self.position

    def commit(self) -> tuple[int, str]:
        """Make it durable; the number of bytes and their sha256."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return self.position, self._sha256.hexdigest()

    def close(self) -> None:
        try:
            self._file.close()
        except OSError:  # what is being discarded need not reach a full disk
            pass


def _group(entries, skipped: Counter[str], path: Path) -> Iterator[tuple[str, dict[str, tuple[int, int]]]]:
    """Key and {suffix: (offset, size)} of each sample with at least one allowed member."""
    key: str | None = None
    members: dict[str, tuple[int, int]] = {}
    for entry in entries:
        why = _why_skipped(entry)
        if why != "":
            skipped[why] += not entry.is_folder
            continue
        entry_key, suffix = _split_name(entry.name)
        if entry_key != key:
            if members:
                yield key, members  # type: ignore[misc]
            key, members = entry_key, {}
        if suffix not in ALLOWED_SUFFIXES:
            skipped["suffix_not_allowed"] += 1
        elif entry.size > MAX_MEMBER_BYTES:
            skipped["too_large"] += 1
        elif suffix in members:
            raise ShardError(f"{_shown(path)}: at byte {entry.offset}: {entry.name!r} is there twice")
        else:
            members[suffix] = entry.offset, entry.size
    if members:
        yield key, members  # type: ignore[misc]


def _why_skipped(entry) -> str:
    """Empty if the entry can belong to a sample."""
    if not entry.is_plain:
        return "not_a_plain_file"
    key, _ = _split_name(entry.name)
    if key == "" or re.match(r"__[^/]*__(/|$)", entry.name):  # webdataset's metadata members
        return "no_key"
    is_relative = not key.startswith("/") and ".." not in key.split("/")
    return "" if is_relative and key.isprintable() and "\\" not in key and len(key) <= 256 else "unsafe_key"


def _split_name(name: str) -> tuple[str, str]:
    """Key and lower-case suffix, split at the first dot of the file name; an empty key if there is none."""
    folder, slash, file_name = name.rpartition("/")
    stem, dot, suffix = file_name.partition(".")
    return (folder + slash + stem if stem and dot else ""), suffix.lower()


def _tabulate(groups, fd: int) -> _TableBuilder:
    table = _TableBuilder()
    for key, members in groups:
        rows = []
        for suffix, (offset, size) in members.items():
            data = os.pread(fd, size, offset)
            if len(data) != size:
                raise BrokenTarError(f"at byte {offset + len(data)}: the file is truncated")
            rows.append(Member(suffix, offset, size, xxhash.xxh3_64_intdigest(data)))
        table.add(key, rows)
    return table


def _make_index_folder(path: Path) -> None:
    try:
        (path.parent / INDEX_FOLDER).mkdir(exist_ok=True)
        writable = os.access(path.parent / INDEX_FOLDER, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        raise ShardError(f"{_shown(path)} has no index and its folder is not writable; "
                         f"run `diptych-shards index` where it is")  # fmt: skip


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _shown(path: Path) -> str:
    """The path on one line, whatever its name holds."""
    text = str(path)
    return text if text.isprintable() else repr(text)
