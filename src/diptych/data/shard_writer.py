"""Write shards: plain tars by the standard library, each with its index."""

from __future__ import annotations

import hashlib
import io
import os
import re
import tarfile
from collections.abc import Mapping
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
    index_path,
    write_index,
)
from diptych.data.tar_scan import BLOCK_BYTES
from diptych.files import flush, name_full_disk
from diptych.terminal import shown

_KEY = re.compile(r"[A-Za-z0-9_/-]{1,256}")


class ShardWriter:
    """Writes one shard: `with ShardWriter(folder, 0) as writer: writer.add(key, {"jpg": ..., "txt": ...})`.

    Equal samples give equal bytes. The shard appears whole at `close`; an exception in the block leaves nothing
    behind.
    """

    def __init__(self, folder: str | os.PathLike[str], name: str | int):
        """name: `00000.tar`, or its number."""
        self._path = Path(folder) / (f"{name:05d}.tar" if isinstance(name, int) else name)
        if not re.fullmatch(r"[^/\0]+\.tar", self._path.name) or self._path.name.startswith("."):
            raise ShardError(f"shard name {name!r} must be a file name that ends in .tar")
        if index_path(self._path).exists():
            raise ShardError(f"{shown(self._path)} is complete; delete it and its index to write it again")
        (self._path.parent / INDEX_FOLDER).mkdir(parents=True, exist_ok=True)
        self._partial = self._path.with_name(f"{self._path.name}.partial")
        self._table = TableBuilder()
        self._keys: set[str] = set()
        self._file = _HashingFile(self._partial)
        self._tar = tarfile.TarFile(fileobj=self._file, mode="w", format=tarfile.PAX_FORMAT)  # type: ignore[arg-type]

    @property
    def num_bytes(self) -> int:
        """Bytes written so far."""
        return self._file.position

    def add(self, key: str, members: Mapping[str, bytes]) -> None:
        """Append one sample with its members in the given order.

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
        flush(self._path.parent)
        write_index(self._path, self._table, num_bytes, sha256, skipped={})
        return Shard(self._path, len(self._table), num_bytes, sha256)

    def discard(self) -> None:
        """Leave nothing behind."""
        self._file.close()
        self._partial.unlink(missing_ok=True)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if error is not None:
            self.discard()
            name_full_disk(error, self._path)
            return
        try:
            self.close()
        except BaseException as failure:
            self.discard()
            name_full_disk(failure, self._path)
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
        except OSError:  # bytes that are discarded need not reach a full disk
            pass
