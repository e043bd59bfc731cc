"""Index shards that something else wrote."""

from __future__ import annotations

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
    shown,
    write_index,
)
from diptych.data.tar_scan import BrokenTarError, TarEntry, scan_tar
from diptych.files import sha256_of

logger = logging.getLogger(__name__)

Group = tuple[str, dict[str, tuple[int, int]]]
"""A sample's key, and offset and size of each of its members by suffix."""


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
            raise ShardError(f"{shown(path)}: {error}") from error
        sha256 = sha256_of(path)
        if os.fstat(file.fileno()).st_size != num_bytes:
            raise ShardError(f"{shown(path)} changed while it was indexed; index it when it is complete")
    if skipped:
        table_of_reasons = ", ".join(f"{times} {why}" for why, times in sorted(skipped.items()))
        logger.warning("%s: skipped %s", shown(path), table_of_reasons)
    write_index(path, table, num_bytes, sha256, skipped=dict(sorted(skipped.items())))
    return Shard(path, len(table), num_bytes, sha256)


def _group(
    entries: Iterable[TarEntry], skipped: Counter[str], path: Path
) -> Iterator[tuple[str, dict[str, tuple[int, int]]]]:
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
            raise ShardError(f"{shown(path)}: at byte {entry.offset}: {entry.name!r} is there twice")
        else:
            members[suffix] = entry.offset, entry.size
    if members:
        yield key, members  # type: ignore[misc]


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


def _tabulate(groups: Iterable[Group], fd: int) -> TableBuilder:
    table = TableBuilder()
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
        raise ShardError(f"{shown(path)} has no index and its folder is not writable; "
                         f"run `diptych-shards index` where it is")  # fmt: skip
