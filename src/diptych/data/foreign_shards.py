"""Index shards that other tools wrote."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import xxhash

from diptych.data.shard_index_file import (
    ALLOWED_SUFFIXES,
    INDEX_FOLDER,
    MAX_MEMBER_BYTES,
    Member,
    Shard,
    ShardError,
    TableBuilder,
    write_index,
)
from diptych.data.tar_scan import BrokenTarError, TarEntry, scan_tar
from diptych.terminal import shown

logger = logging.getLogger(__name__)


def index_shard(path: str | os.PathLike[str]) -> Shard:
    """Index a tar that another tool wrote, grouping its members as webdataset does.

    Neighbours whose names agree up to the first dot of the file name are one sample. Members that are no
    plain files, have another suffix or a key that is not a safe relative name are skipped and counted.

    Raises:
        ShardError: if the tar is compressed, damaged or truncated, or its folder is not writable.
    """
    shard, remark = index_silently(path)
    if remark:
        logger.warning("%s", remark)
    return shard


def index_silently(path: str | os.PathLike[str]) -> tuple[Shard, str]:
    """Index a tar without logging; the second value is a line that says what was skipped, empty if nothing was."""
    path = Path(path)
    _make_index_folder(path)
    skipped: Counter[str] = Counter()
    with open(path, "rb") as opened:
        file = _HashedFile(opened)
        num_bytes = os.fstat(opened.fileno()).st_size
        table = TableBuilder()
        hints = _Hints()
        try:
            for key, members in _group(scan_tar(file), skipped, hints, file, path):  # type: ignore[arg-type]
                hints.note_sample(key)
                table.add(key, members)
        except BrokenTarError as error:
            raise ShardError(f"{shown(path)}: {error}") from error
        sha256 = file.sha256()
        if os.fstat(opened.fileno()).st_size != num_bytes:
            raise ShardError(f"{shown(path)} changed while it was indexed; index it when it is complete")
    write_index(path, table, num_bytes, sha256, skipped=dict(sorted(skipped.items())))
    table_of_reasons = ", ".join(f"{times} {why}" for why, times in sorted(skipped.items()))
    remarks = [f"skipped {table_of_reasons}", *hints.remarks()] if skipped else hints.remarks()
    remark = f"{shown(path)}: {'; '.join(remarks)}" if remarks else ""
    return Shard(path, len(table), num_bytes, sha256), remark


class _HashedFile:
    """A file that is hashed as it is read, so that a tar on a slow disk is read once.

    A reader may step back within what it has read; bytes that it skips are read for the hash.
    """

    def __init__(self, file: io.BufferedReader):
        self._file = file
        self._sha256 = hashlib.sha256()
        self._num_hashed = 0
        self.fileno, self.tell, self.seek = file.fileno, file.tell, file.seek

    def read(self, size: int = -1) -> bytes:
        start = self._file.tell()
        if start > self._num_hashed:
            self._file.seek(self._num_hashed)
            while self._num_hashed < start and (gap := self._file.read(min(1 << 20, start - self._num_hashed))):
                self._take(gap)
            self._file.seek(start)
        data = self._file.read(size)
        if start + len(data) > self._num_hashed:
            self._take(memoryview(data)[self._num_hashed - start :])
        return data

    def sha256(self) -> str:
        """The sha256 of the whole file; reads the bytes that were not read yet."""
        self._file.seek(self._num_hashed)
        while chunk := self._file.read(1 << 20):
            self._take(chunk)
        return self._sha256.hexdigest()

    def _take(self, data: bytes | memoryview) -> None:
        self._sha256.update(data)
        self._num_hashed += len(data)


class _Hints:
    """Collects names in a tar that probably mean something else than webdataset takes them for."""

    def __init__(self) -> None:
        self._keys: set[int] = set()
        self._counts: Counter[str] = Counter()
        self._examples: dict[str, str] = {}

    def note_sample(self, key: str) -> None:
        digest = xxhash.xxh3_64_intdigest(key.encode("utf-8", "surrogateescape"))
        if digest in self._keys:
            self._note("again", key)
        self._keys.add(digest)

    def note_suffix(self, name: str, suffix: str) -> None:
        if "." in suffix and suffix.rpartition(".")[2] in ALLOWED_SUFFIXES:
            self._note("dotted", name)

    def remarks(self) -> list[str]:
        """One line for each kind of such names, with the way out."""
        texts = {
            "dotted": "{} names such as {}: all that follows the first dot is the suffix, as for webdataset; "
            "write the tar again with keys without dots",
            "again": "{} keys such as {} come again later, as samples of their own; if the members belong together, "
            "write the tar again with them as neighbours (tar --sort=name)",
        }
        found = [kind for kind in texts if kind in self._counts]
        return [texts[kind].format(f"{self._counts[kind]:,}", shown(self._examples[kind])) for kind in found]

    def _note(self, kind: str, name: str) -> None:
        self._counts[kind] += 1
        self._examples.setdefault(kind, name)


def _group(
    entries: Iterable[TarEntry], skipped: Counter[str], hints: _Hints, file: _HashedFile, path: Path
) -> Iterator[tuple[str, list[Member]]]:
    """Key and members of each sample with at least one allowed member."""
    key = ""
    members: dict[str, Member] = {}
    for entry in entries:
        why = _why_skipped(entry)
        if why != "":
            if not entry.is_folder:
                skipped[why] += 1
            continue
        entry_key, suffix = _split_name(entry.name)
        if entry_key != key:
            if members:
                yield key, list(members.values())
            key, members = entry_key, {}
        if suffix not in ALLOWED_SUFFIXES:
            skipped["suffix_not_allowed"] += 1
            hints.note_suffix(entry.name, suffix)
        elif entry.size > MAX_MEMBER_BYTES:
            skipped["too_large"] += 1
        elif suffix in members:
            raise ShardError(f"{shown(path)}: at byte {entry.offset}: {entry.name!r} appears twice")
        else:
            members[suffix] = _hash_member(suffix, entry, file)
    if members:
        yield key, list(members.values())


def _hash_member(suffix: str, entry: TarEntry, file: _HashedFile) -> Member:
    """Hash a member now, before its neighbour's header is read, so that the file is read from front to back."""
    file.seek(entry.offset)
    data = file.read(entry.size)
    if len(data) != entry.size:
        raise BrokenTarError(f"at byte {entry.offset + len(data)}: the file is truncated")
    return Member(suffix, entry.offset, entry.size, xxhash.xxh3_64_intdigest(data))


def _why_skipped(entry: TarEntry) -> str:
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


def _make_index_folder(path: Path) -> None:
    try:
        (path.parent / INDEX_FOLDER).mkdir(exist_ok=True)
        writable = os.access(path.parent / INDEX_FOLDER, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        raise ShardError(f"{shown(path)} has no index and its folder is not writable; "
                         f"run `diptych-shards index` where it is")  # fmt: skip
