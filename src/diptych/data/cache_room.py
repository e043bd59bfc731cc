"""The room that a shard cache may take: what nobody holds is deleted for what comes, the least recently used first."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from diptych.data.shard_index_file import INDEX_FOLDER
from diptych.files import LockedError, locked

_PARTIAL = re.compile(r"\.(\d+)\.partial$")


@dataclass(frozen=True)
class CacheRoom:
    """The folder of a shard cache, and how many bytes it may take."""

    folder: Path
    max_bytes: int | None
    """None: half of the disk's free space, counting the cache itself as free."""

    def limit(self) -> int:
        """How many bytes the cache may take now."""
        return self._limit(sum(entry.num_bytes for entry in self._entries()))

    def make(self, kept: Path, needed: int) -> bool:
        """Delete what nobody holds, the least recently used first, until `needed` bytes fit; False if they do not.

        kept: the folder of a shard that is not deleted.
        """
        entries = sorted(self._entries(), key=lambda entry: entry.used_at)
        used = sum(entry.num_bytes for entry in entries)
        too_many = used + needed - self._limit(used)
        for entry in entries:
            if too_many <= 0:
                break
            if entry.folder != kept and _delete(entry.folder):
                too_many -= entry.num_bytes
        return too_many <= 0

    def _entries(self) -> Iterator[_Entry]:
        with suppress(FileNotFoundError), os.scandir(self.folder) as folders:
            for folder in folders:
                # Other files would be deleted, if the folder that the user named has some.
                if re.fullmatch("[0-9a-f]{64}", folder.name) and folder.is_dir():
                    yield _Entry.of(Path(folder.path))

    def _limit(self, used: int) -> int:
        if self.max_bytes is not None:
            return self.max_bytes
        # The folder may not be made yet.
        disk = next(folder for folder in (self.folder, *self.folder.parents) if folder.exists())
        return (shutil.disk_usage(disk).free + used) // 2


@dataclass(frozen=True)
class _Entry:
    """The folder of a shard in the cache."""

    folder: Path
    num_bytes: int
    """With what is still to be downloaded of a shard."""
    used_at: float

    @staticmethod
    def of(folder: Path) -> _Entry:
        num_bytes, used_at = 0, 0.0
        for file in (*folder.glob("*"), *(folder / INDEX_FOLDER).glob("*")):
            with suppress(FileNotFoundError):
                status = file.stat()
                expected = _PARTIAL.search(file.name)
                num_bytes += int(expected[1]) if expected else status.st_size if file.is_file() else 0
                used_at = max(used_at, status.st_mtime)
        return _Entry(folder, num_bytes, used_at)


def _delete(folder: Path) -> bool:
    """Delete a shard from the cache; False if it is held or being fetched."""
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
    except LockedError:
        return False
