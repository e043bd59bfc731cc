"""Lock files and folders, so that no two processes write into the same one."""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from diptych.errors import UserError
from diptych.files import NO_ROOM, cannot

LOCK_FILE = "lock"


class LockedError(UserError):
    """The lock of a folder is taken, by another process or by this one."""

    def __init__(self, folder: Path, who: str, holder: str, *, is_ours: bool):
        super().__init__(f"another {who} is at work in {folder} ({holder}); let it finish")
        self.holder = holder
        self.is_ours = is_ours


@contextmanager
def locked(folder: Path, who: str) -> Iterator[None]:
    """Hold the lock of a folder during the block; a missing folder is created.

    who: the name of the command, for messages, such as `pack`.

    The file FOLDER/lock stays after the block. Only the holder of the lock may remove it, and only with the whole
    folder.

    Raises:
        LockedError: another process, or another block of this one, holds the lock.
        UserError: the folder cannot be created, or the disk cannot lock files.
        OSError: the lock file cannot be created, or the disk is full.
    """
    with _taking_or_releasing:
        descriptor = _open_locked(folder, who)
    try:
        with suppress(OSError):  # a full disk must not end the run for the sake of the holder's name
            os.pwrite(descriptor, f"process {os.getpid()} on {platform.node()}".encode(), 0)
        yield
    finally:
        os.ftruncate(descriptor, 0)  # so that equal runs leave equal files
        with _taking_or_releasing:
            unlock_file(descriptor)


def _open_locked(folder: Path, who: str) -> int:
    path = folder / LOCK_FILE
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if error.errno in NO_ROOM:
                raise
            raise cannot(error, folder, "made", "name another folder") from error
        # Check this before opening the file: closing it would release the lock that this process holds.
        if _identity_if_there(path) in _locked:
            raise LockedError(folder, who, "this process", is_ours=True)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:  # the last holder has removed the folder meanwhile
            continue
        try:
            is_alone = lock_file(descriptor)
            holder = os.pread(descriptor, 200, 0).decode(errors="replace") or "another process"
        except OSError as error:
            os.close(descriptor)
            raise cannot(error, path, "locked", "name a folder on a disk that can lock files") from error
        if not is_alone:
            os.close(descriptor)
            raise LockedError(folder, who, holder, is_ours=False)
        # The last holder may have removed the file after we opened it; then nobody else would see this lock.
        if _identity_if_there(path) == _identity(descriptor):
            os.ftruncate(descriptor, 0)
            return descriptor
        unlock_file(descriptor)


_locked: set[tuple[int, int, int]] = set()
"""(process, device, inode) of each file that this process has locked; a forked child inherits this, but no locks."""
_taking_or_releasing = threading.Lock()
"""Held by the thread that opens or closes a lock file: a thread that closes one releases the lock of the others."""


def lock_file(descriptor: int) -> bool:
    """Lock an open file until `unlock_file` or the end of this process; False if the lock is taken.

    This is a record lock: other machines see it over NFS, and child processes, which may outlive this one, do not
    inherit it. It does not exclude a second lock by the same process, so `_locked` remembers what this process holds.

    Raises:
        OSError: the disk cannot lock files, or cannot at the moment.
    """
    if _identity(descriptor) in _locked:
        return False
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        raise
    _locked.add(_identity(descriptor))
    return True


def unlock_file(descriptor: int) -> None:
    """Release the lock and close the file."""
    _locked.discard(_identity(descriptor))
    os.close(descriptor)


def _identity(file: int | Path) -> tuple[int, int, int]:
    status = os.stat(file)
    return os.getpid(), status.st_dev, status.st_ino


def _identity_if_there(path: Path) -> tuple[int, int, int] | None:
    try:
        return _identity(path)
    except FileNotFoundError:
        return None
