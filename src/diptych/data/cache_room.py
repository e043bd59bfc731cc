"""The room that a shard cache may take: what nobody holds is deleted for what comes, the least recently used first.

A file takes its room before it is fetched, when it is still empty: its name `NAME.<bytes>.partial` gives the bytes that
it will have. The file `FOLDER/taken` records how many bytes all files together take at most, so the folder is looked
through only if these are too many. It is locked by the one process of the machine that takes room at the moment.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from diptych.data.shard_index_file import INDEX_FOLDER
from diptych.errors import UserError
from diptych.locks import LOCK_FILE, locked

SPARE_PART = 64
"""If shards must be deleted, this part of the room is made free, so that the next shards find room at once."""
_PARTIAL = re.compile(r"\.(\d+)\.partial$")


class _Taken(NamedTuple):
    """What the file `taken` contains."""

    num_bytes: int
    """What the files take at most, with what is still to be fetched of them."""
    on_disk: int
    """How many of these bytes were on the disk when the folder was looked through."""


_FORMAT = struct.Struct("<2Q")


@dataclass(frozen=True)
class CacheRoom:
    """The folder of a shard cache, and how many bytes it may take."""

    folder: Path
    max_bytes: int | None
    """None: half of the disk's free space, counting the cache itself as free."""

    def limit(self) -> int:
        """How many bytes the cache may take now."""
        return self.max_bytes or self._limit(sum(entry.on_disk for entry in self._entries()))

    def take(self, file: Path, num_bytes: int, *, even_if_full: bool = False) -> Path | None:
        """The path at which to write `file`, which will have `num_bytes`; None if there is no room for it.

        It exists, and contains what an earlier download has left. The lock of the shard's folder must be held.
        """
        partial = file.with_name(f"{file.name}.{num_bytes}.partial")
        if partial.exists():
            return partial
        with self._locked() as descriptor:
            read = os.pread(descriptor, _FORMAT.size, 0)
            taken = _Taken(*_FORMAT.unpack(read)) if len(read) == _FORMAT.size else None
            if taken is None or not self._fits(taken, num_bytes):
                taken = self._make_room(num_bytes)
            fits = self._fits(taken, num_bytes)
            # First the number: a process that is killed between the two leaves it too large, not too small.
            if fits or even_if_full:
                taken = _Taken(taken.num_bytes + num_bytes, taken.on_disk)
            os.pwrite(descriptor, _FORMAT.pack(*taken), 0)
            if fits or even_if_full:
                partial.parent.mkdir(exist_ok=True)
                partial.touch()
                return partial
        return None

    def _make_room(self, needed: int) -> _Taken:
        """Look through the folder, and delete what nobody holds until `needed` bytes fit."""
        entries = list(self._entries())
        taken = _Taken(sum(entry.num_bytes for entry in entries), sum(entry.on_disk for entry in entries))
        if self._fits(taken, needed):
            return taken
        needed += self._limit(taken.on_disk) // SPARE_PART
        for entry in sorted(entries, key=lambda entry: entry.used_at):
            if self._fits(taken, needed):
                break
            if _delete(entry.folder):
                taken = _Taken(taken.num_bytes - entry.num_bytes, taken.on_disk - entry.on_disk)
        return taken

    def _fits(self, taken: _Taken, needed: int) -> bool:
        return taken.num_bytes + needed <= self._limit(taken.on_disk)

    def _limit(self, on_disk: int) -> int:
        if self.max_bytes is not None:
            return self.max_bytes
        # The folder may not be made yet.
        disk = next(folder for folder in (self.folder, *self.folder.parents) if folder.exists())
        return (shutil.disk_usage(disk).free + on_disk) // 2

    @contextmanager
    def _locked(self) -> Iterator[int]:
        """Keep other processes and threads from taking room during the block; the value is the open file `taken`."""
        descriptor = os.open(self.folder / "taken", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            with suppress(PermissionError):  # whoever may write to the folder may write this file of its first user
                os.fchmod(descriptor, self.folder.stat().st_mode & 0o666)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield descriptor
        finally:
            os.close(descriptor)

    def _entries(self) -> Iterator[_Entry]:
        with suppress(FileNotFoundError), os.scandir(self.folder) as folders:
            for folder in folders:
                # Other files would be deleted, if the folder that the user named has some.
                if re.fullmatch("[0-9a-f]{64}", folder.name) and folder.is_dir():
                    yield _Entry.of(Path(folder.path))


@dataclass(frozen=True)
class _Entry:
    """The folder of a shard in the cache."""

    folder: Path
    num_bytes: int
    """With what is still to be fetched of it."""
    on_disk: int
    used_at: float

    @staticmethod
    def of(folder: Path) -> _Entry:
        num_bytes, on_disk, used_at = 0, 0, 0.0
        for file in _files_of(folder):
            with suppress(FileNotFoundError):
                status = file.stat()
                expected = _PARTIAL.search(file.name)
                num_bytes += int(expected[1]) if expected else status.st_size
                on_disk += status.st_size
                used_at = max(used_at, status.st_mtime)
        return _Entry(folder, num_bytes, on_disk, used_at)


def _files_of(folder: Path) -> Iterator[os.DirEntry[str]]:
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name == INDEX_FOLDER:
                yield from _files_of(Path(entry.path))
            elif entry.name != LOCK_FILE:
                yield entry


def _delete(folder: Path) -> bool:
    """Delete a shard from the cache; False if it is held or being fetched, or belongs to another user."""
    try:
        with locked(folder, "download"):
            for tar in folder.glob("*.tar"):
                descriptor = os.open(tar, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    return False
                finally:
                    os.close(descriptor)
            shutil.rmtree(folder)
            return True
    except (UserError, OSError):
        return False
