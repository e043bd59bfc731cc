"""A folder of this machine that keeps whole shards of remote folders, fetched once for all processes that read them.

    FOLDER/<sha256 of the shard>/NAME.tar                     whole, and of that hash
    FOLDER/<sha256 of the shard>/_index/NAME.tar.index
    FOLDER/<sha256 of the shard>/NAME.tar.<bytes>.partial     a download that runs, or goes on where it was ended
    FOLDER/<sha256 of the shard>/lock                         held while the shard is fetched or deleted
    FOLDER/<sha256 of the shard>/failed                       why it could not be fetched when that was tried last
    FOLDER/taken                                              how many bytes all of them take (`cache_room.py`)

Shards are found by what they contain, so one that changes at its address is fetched again, and one at two addresses is
kept once. A process that will need a shard soon holds it by a shared lock on the tar, which ends with the process;
what nobody holds is deleted when room is needed, the least recently used first.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from diptych.data.cache_room import CacheRoom
from diptych.data.shard_download import RemoteShardError, download, read_whole
from diptych.data.shard_index_file import INDEX_FOLDER, Shard, check_index, index_path
from diptych.errors import UserError
from diptych.files import NO_DESCRIPTORS, NO_ROOM, OpenFile, cannot, check_writable, sha256_of
from diptych.locks import LOCK_FILE, LockedError, locked
from diptych.terminal import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from diptych.config.schema import CacheConfig

POLL_SECONDS = 0.05
"""How often a process looks whether another has fetched the shard that it waits for."""
FAILURE_SECONDS = 200.0
"""How long a shard that could not be fetched is not fetched ahead again. Who needs it now tries."""

logger = logging.getLogger(__name__)


class FullCacheError(Exception):
    """A shard does not fit into the cache now; it will when others have been read."""


@dataclass(frozen=True)
class ShardCache:
    """The cache's folder, and how many bytes it may take."""

    chosen_folder: Path | None = None
    """None: the default folder of the machine that reads, which may differ from that of rank 0."""
    max_bytes: int | None = None
    """None: half of the disk's free space, counting the cache itself as free."""

    @staticmethod
    def of(config: CacheConfig) -> ShardCache:
        return ShardCache(Path(config.folder) if config.folder else None, config.bytes)

    @property
    def folder(self) -> Path:
        return self.chosen_folder or default_folder()

    @property
    def room(self) -> CacheRoom:
        return CacheRoom(self.folder, self.max_bytes)

    def check_writable(self) -> None:
        """Check that shards can be kept here, without leaving any file.

        Raises:
            UserError: they cannot.
        """
        check_writable(self.folder / LOCK_FILE, _OTHER_FOLDER)

    def path_of(self, name: str, sha256: str) -> Path:
        """Where a shard is, once it is fetched."""
        return self.folder / sha256 / name

    def open(self, shard: Shard) -> OpenFile:
        """The shard's tar, which is fetched if it is not there.

        Raises:
            RemoteShardError: it cannot be fetched, or is not the shard that its index describes.
        """
        began = time.time()
        while True:
            with suppress(FileNotFoundError):
                file = _open(shard)
                if os.fstat(file.descriptor).st_size == shard.num_bytes or not self.drop_if_damaged(shard, file):
                    return file
            with self._fetching(shard) as is_mine:
                if is_mine:
                    with self._sharing_failure(shard, began):
                        self._fetch(shard)
                    return _open(shard)
            time.sleep(POLL_SECONDS)

    def reserve(self, shard: Shard) -> Callable[[], OpenFile] | None:
        """Take the room of a shard that will be needed soon; None if another process is fetching it.

        The value must be called: it fetches the shard and its index file if need be, and returns an open file that
        keeps the shard in the cache. It raises the same errors, and those of `open`.

        Raises:
            FullCacheError: there is no room for it, since all shards of the cache are held.
        """
        with ExitStack() as stack:
            if not stack.enter_context(self._fetching(shard)):
                return None
            if not shard.path.exists():
                self._take(shard.path, shard.num_bytes, is_needed_now=False)
            lock = stack.pop_all()
        return lambda: self._hold(shard, lock)

    def _hold(self, shard: Shard, lock: ExitStack) -> OpenFile:
        with lock:
            with self._sharing_failure(shard, time.time() - FAILURE_SECONDS):
                if not index_path(shard.path).exists():
                    self._fetch_index(shard, is_needed_now=False)
                self._fetch(shard)
            file = _open(shard)
            # Nobody deletes the shard before it is held, since that takes the lock of its folder.
            fcntl.flock(file.descriptor, fcntl.LOCK_SH)
            return file

    def fetch_index(self, shard: Shard) -> None:
        """Fetch the shard's index file, which is missing or damaged.

        Raises:
            RemoteShardError: it cannot be fetched, or belongs to another tar by now.
        """
        path, began = index_path(shard.path), time.time()
        while True:
            with self._fetching(shard) as is_mine:
                if is_mine:
                    if not path.exists() or not _is_whole_index(path.read_bytes(), shard):
                        with self._sharing_failure(shard, began):
                            self._fetch_index(shard, is_needed_now=True)
                    return
            time.sleep(POLL_SECONDS)

    def drop_if_damaged(self, shard: Shard, file: OpenFile) -> bool:
        """Delete the open tar if its bytes are not those that were fetched; whether another is to be opened."""
        with self._fetching(shard) as is_mine, suppress(FileNotFoundError):
            if not is_mine or not os.path.samestat(os.stat(shard.path), os.fstat(file.descriptor)):
                return True  # it is being fetched again, or was meanwhile
            if sha256_of(shard.path) == shard.sha256:
                return False
            shard.path.unlink()
            logger.warning("%s was damaged in the cache; fetching it again", shown(shard.location))
        return True

    @contextmanager
    def _fetching(self, shard: Shard) -> Iterator[bool]:
        """Hold the lock of the shard's folder during the block; the value is False if it is taken."""
        try:
            lock = locked(shard.path.parent, "download")
            lock.__enter__()
        except LockedError:
            yield False
            return
        except (UserError, OSError) as error:
            raise _unwritable(error, self.folder) from error
        try:
            yield True
        finally:
            lock.__exit__(None, None, None)

    @contextmanager
    def _sharing_failure(self, shard: Shard, since: float) -> Iterator[None]:
        """Record why the block could not fetch the shard, for those that wait for its lock.

        Each of them would otherwise try as long, one after another, until other ranks give up.

        Raises:
            RemoteShardError: the block fails, or somebody has failed since then (seconds of the clock).
        """
        failed = shard.path.parent / "failed"
        with suppress(FileNotFoundError):
            if failed.stat().st_mtime > since:
                raise RemoteShardError(failed.read_text())
        try:
            yield
        except RemoteShardError as error:
            with suppress(OSError):  # the disk may be full
                failed.write_text(str(error))
            raise
        failed.unlink(missing_ok=True)

    def _fetch(self, shard: Shard) -> None:
        """Download the shard, whose folder is locked, check it and give it its name."""
        if shard.path.exists():
            return
        for _ in range(2):
            try:
                partial = self._take(shard.path, shard.num_bytes, is_needed_now=True)
                download(shard.location, shard.num_bytes, partial)
            except OSError as error:
                raise _unwritable(error, shard.path) from error
            # Not flushed: what a power cut leaves is read with the hashes of its members, and fetched again.
            if partial.stat().st_size == shard.num_bytes and sha256_of(partial) == shard.sha256:
                os.replace(partial, shard.path)
                return
            partial.unlink()  # left by a process that died, or changed on the way
        raise RemoteShardError(
            f"{shown(shard.location)}: its {shard.num_bytes:,} bytes are not those that its index describes; "
            f"copy shards together with their {INDEX_FOLDER} folder"
        )

    def _fetch_index(self, shard: Shard, *, is_needed_now: bool) -> None:
        """Download the index file of the shard, whose folder is locked, and check it."""
        data = read_whole(index_url(shard.location), lambda data: _is_whole_index(data, shard))
        path = index_path(shard.path)
        try:
            partial = self._take(path, len(data), is_needed_now=is_needed_now)
            partial.write_bytes(data)
            os.replace(partial, path)
        except OSError as error:
            raise _unwritable(error, path) from error

    def _take(self, file: Path, num_bytes: int, *, is_needed_now: bool) -> Path:
        """The path at which to write a file.

        Raises:
            FullCacheError: there is no room for it, and it is not needed now.
        """
        partial = self.room.take(file, num_bytes)
        if partial is None and is_needed_now:
            _warn_once(self)
            partial = self.room.take(file, num_bytes, even_if_full=True)
        if partial is None:
            raise FullCacheError(f"{self.folder} is full of shards that are needed")
        return partial


def default_folder() -> Path:
    """The cache of this user on this machine: `shards` in the folder that XDG_CACHE_HOME names, or else ~/.cache."""
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(caches).expanduser() / "diptych" / "shards"


OPEN_FILES = 16_384
"""How many files a process may open that trains: tars, shards held for batches to come, and all else. Many systems
allow 1,024 unless asked."""
MORE_FILES = f"raise the limit of open files (`ulimit -n`) to {OPEN_FILES}, or set data.streams to a smaller number"
_OTHER_FOLDER = "set data.cache.folder, or XDG_CACHE_HOME, to a folder of a disk of this machine"
_MORE_ROOM = "set data.cache.bytes to less than the disk has, or data.cache.folder to another disk"


def _unwritable(error: UserError | OSError, path: Path) -> RemoteShardError:
    cause = error if isinstance(error, OSError) else error.__cause__
    if isinstance(cause, OSError) and cause.errno in NO_DESCRIPTORS:
        return RemoteShardError(f"{shown(path)} cannot be opened: {cause.strerror}; {MORE_FILES}")
    if isinstance(error, UserError):
        return RemoteShardError(f"{error}; {_OTHER_FOLDER}")
    return RemoteShardError(
        str(cannot(error, path, "written", _MORE_ROOM if error.errno in NO_ROOM else _OTHER_FOLDER))
    )


def _open(shard: Shard) -> OpenFile:
    """The shard's tar, which counts as used now."""
    file = OpenFile(os.open(shard.path, os.O_RDONLY | os.O_CLOEXEC))
    with suppress(PermissionError):  # another user fetched it: it counts as used when it was fetched
        os.utime(file.descriptor)
    return file


def _is_whole_index(data: bytes, shard: Shard) -> bool:
    try:
        header = check_index(data, shard.name)
    except ValueError:
        return False
    if header.sha256 != shard.sha256:
        raise RemoteShardError(f"{shown(shard.location)} was indexed again since it was opened; open it again")
    return True


def index_url(tar_url: str) -> str:
    folder, _, name = tar_url.rpartition("/")
    return f"{folder}/{INDEX_FOLDER}/{name}.index"


@lru_cache(maxsize=16)
def _warn_once(cache: ShardCache) -> None:
    """Say that the cache is too small; its limit, which may change, is not part of what is said once."""
    logger.warning(
        "the shard cache %s takes more than its %s bytes, since all that is in it is needed at once; set "
        "data.cache.bytes to more, or data.streams to less",
        cache.folder,
        f"{cache.room.limit():,}",
    )
