"""Open shards at an address that fsspec reads, by their index files alone: no tar is fetched for that."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from diptych.data.shard_cache import ShardCache, index_url
from diptych.data.shard_download import ANSWER_SECONDS, RemoteShardError, with_retries
from diptych.data.shard_index_file import (
    FOLDER_LIST,
    INDEX_FOLDER,
    MAX_HEADER_BYTES,
    ShardError,
    ShardHeader,
    parse_header,
)
from diptych.data.shard_list import SHARD_ROW, ShardList, ShardRow
from diptych.data.shard_locations import expanded
from diptych.remote_files import file_system, is_missing, is_web, status_of
from diptych.terminal import shown

OPENING_SECONDS = 30.0
"""How long a request is repeated while shards are opened: somebody waits, and nothing has been computed yet."""
_FIRST_BYTES = 4096
"""Enough for the first line of an index file, mostly."""
_AT_ONCE = 256
"""Requests that are made together."""
_NO_LISTING = (403, 404, 405, 410)
"""Answers of web servers that do not list their folders."""

logger = logging.getLogger(__name__)


def remote_shards(location: str, cache: ShardCache) -> ShardList:
    """The shards of a folder, a tar or a brace pattern at an address, by name.

    Raises:
        RemoteShardError: nothing is there, a shard has no index, or its size is not that of its index.
    """
    if "{" in location or location.endswith(".tar"):
        tars = sorted(expanded(location), key=lambda tar: tar.rpartition("/")[2])
    else:
        tars = []
    folders = dict.fromkeys(tar.rpartition("/")[0] for tar in tars) or [location.rstrip("/")]
    known = {folder: _RemoteFolder.of(folder, with_list=len(tars) != 1) for folder in folders}
    tars = tars or known[location.rstrip("/")].tars()
    rows = [known[tar.rpartition("/")[0]].row(tar) for tar in tars]
    headers = iter(_headers([tar for tar, row in zip(tars, rows, strict=True) if row is None]))
    shards = ShardList(tars, np.array([row or _row(next(headers)) for row in rows], SHARD_ROW), cache)
    for tar, num_bytes in zip(tars, shards.num_bytes.tolist(), strict=True):
        known[tar.rpartition("/")[0]].check_size(tar, num_bytes)
    return shards


@dataclass(frozen=True)
class _RemoteFolder:
    """What is known of a folder of shards without looking at each of them."""

    url: str
    sizes: dict[str, int | None]
    """Name → bytes of each file, as far as the store says; empty if it does not list its files."""
    indexed: frozenset[str]
    """Names of the tars that have an index."""
    rows: dict[str, ShardRow]
    """What its `all.index` says of each tar; empty if there is none."""

    @staticmethod
    def of(url: str, *, with_list: bool) -> _RemoteFolder:
        sizes, index_files = _sizes(url), _sizes(f"{url}/{INDEX_FOLDER}")
        indexed = {name.removesuffix(".index") for name in index_files if name.endswith(".tar.index")}
        has_list = with_list and (FOLDER_LIST in index_files or not index_files)
        return _RemoteFolder(url, sizes, frozenset(indexed), _folder_list(url) if has_list else {})

    def tars(self) -> list[str]:
        """The addresses of its tars, by name."""
        names = set(self.sizes) or set(self.rows)
        names = {name for name in names if name.endswith(".tar") and not name.startswith(".")}
        if missing := sorted(self.indexed - names):
            raise RemoteShardError(
                f"{shown(self.url)}: {missing[0]!r} is indexed but not there ({len(missing)} such). Copy it there, or "
                f"delete {INDEX_FOLDER}/{missing[0]}.index"
            )
        if not names:
            raise RemoteShardError(
                f"{shown(self.url)} holds no .tar file, or does not list its files and has no {INDEX_FOLDER}/"
                f"{FOLDER_LIST}; name a folder of shards, and copy {INDEX_FOLDER} there with them"
            )
        if self.sizes and (without := sorted(names - self.indexed)):
            raise _no_index(f"{self.url}/{without[0]}")
        return [f"{self.url}/{name}" for name in sorted(names)]

    def row(self, tar: str) -> ShardRow | None:
        """What `all.index` says of a tar; None if it does not hold for the tar that is there now.

        Raises:
            RemoteShardError: the tar is missing, or is no tar.
        """
        name = tar.rpartition("/")[2]
        if not name.endswith(".tar"):
            raise RemoteShardError(f"{shown(tar)} is neither a folder of shards nor a .tar file")
        if self.sizes and name not in self.sizes:
            raise RemoteShardError(f"{shown(tar)} does not exist")
        row = self.rows.get(name)
        holds = row and self.sizes.get(name) in (None, row[1]) and (not self.indexed or name in self.indexed)
        return row if holds else None

    def check_size(self, tar: str, num_bytes: int) -> None:
        """Raise RemoteShardError if the tar has another size than its index says."""
        size = self.sizes.get(tar.rpartition("/")[2])
        if size not in (None, num_bytes):
            raise RemoteShardError(f"{shown(tar)} has {size} bytes, its index says {num_bytes}; copy both there again")


def _folder_list(url: str) -> dict[str, ShardRow]:
    """The rows of a folder's `all.index`, by name; empty if it has none that can be used."""
    address = f"{url}/{INDEX_FOLDER}/{FOLDER_LIST}"
    files, path = file_system(address)

    def read() -> bytes | None:
        try:
            data: bytes = files.cat_file(path)
        except Exception as error:  # each store has classes of its own
            if _is_absent(url, error):
                return None
            raise
        return data

    data = with_retries(address, read, OPENING_SECONDS)
    try:
        return dict(ShardList.from_bytes(data, url).rows()) if data is not None else {}
    except ShardError as error:
        logger.warning("%s is not used: %s", shown(address), error)
        return {}


def _sizes(folder: str) -> dict[str, int | None]:
    """Name → bytes of each file in a remote folder, as far as the store says; empty if it is missing."""
    files, path = file_system(folder)

    def listed() -> list[dict[str, Any]]:
        files.invalidate_cache(path)  # fsspec remembers listings, also through `diptych-shards index`
        try:
            found: list[dict[str, Any]] = files.ls(path, detail=True)
        except Exception as error:  # each store has classes of its own
            if _is_absent(folder, error):
                return []
            raise
        return found

    return {
        entry["name"].rstrip("/").rpartition("/")[2]: entry.get("size")
        for entry in with_retries(folder, listed, OPENING_SECONDS)
        if entry.get("type") == "file"
    }


def _headers(tars: Sequence[str]) -> Iterator[ShardHeader]:
    """The header of the index file of each tar; many are asked for at once."""
    for start in range(0, len(tars), _AT_ONCE):
        some = tars[start : start + _AT_ONCE]
        files, _ = file_system(some[0])
        paths = [file_system(index_url(tar))[1] for tar in some]
        limit = {"timeout": ANSWER_SECONDS} if files.async_impl else {}
        try:
            answers = files.cat_ranges(paths, [0] * len(paths), [_FIRST_BYTES] * len(paths), on_error="return", **limit)
        except Exception:  # each store has classes of its own
            answers = [b""] * len(paths)
        for tar, answer in zip(some, answers, strict=True):
            line = _first_line(answer if isinstance(answer, bytes) else b"")
            yield _header(tar, line or _first_line(_start_of(tar)))


def _row(header: ShardHeader) -> ShardRow:
    return header.samples, header.bytes, bytes.fromhex(header.sha256)


def _start_of(tar: str) -> bytes:
    """The first bytes of the index of a tar, read by itself since it failed among others."""
    files, path = file_system(index_url(tar))

    def read() -> bytes:
        try:
            data: bytes = files.cat_file(path, start=0, end=MAX_HEADER_BYTES)
        except FileNotFoundError as error:
            raise _no_index(tar) from error
        return data

    return with_retries(index_url(tar), read, OPENING_SECONDS)


def _first_line(data: bytes) -> bytes:
    return data[: data.find(b"\n") + 1]


def _header(tar: str, line: bytes) -> ShardHeader:
    try:
        header = parse_header(line, None, tar.rpartition("/")[2])
        if not re.fullmatch("[0-9a-f]{64}", header.sha256):
            raise ValueError("it holds no sha256")
    except ValueError as error:
        raise RemoteShardError(
            f"{shown(index_url(tar))} is damaged; delete it, write it again with `diptych-shards index` where the "
            f"shards were made, and copy it there"
        ) from error
    return header


def _is_absent(location: str, error: Exception) -> bool:
    """Whether a file is missing, or a web server does not list or show it."""
    return is_missing(location, error) or (is_web(location) and status_of(error) in _NO_LISTING)


def _no_index(tar: str) -> RemoteShardError:
    return RemoteShardError(
        f"{shown(tar)} has no index; run `diptych-shards index` where the shards were made, and copy their "
        f"{INDEX_FOLDER} folder to {shown(tar.rpartition('/')[0])}"
    )
