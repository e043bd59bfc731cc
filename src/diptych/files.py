"""Paths of this machine, files that appear whole or not at all and stay after a power cut, and locks."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import platform
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import unquote

from diptych.errors import UserError

LOCK_FILE = "lock"
PARTIAL = re.compile(r"(\.[0-9a-f]{8})?\.partial$")
"""What the names of files end in until they are whole."""

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What a write fails with on a full disk, beyond a quota, or beyond the size that a file may have."""

_COPIED_WITH = {
    "s3": "`aws s3 sync`",
    "gs": "`gcloud storage rsync -r`",
    "hf": "`hf upload` or `hf download`",
    "az": "`azcopy sync`",
}
"""The tools of some stores, by the scheme of their addresses."""


def local_path(text: str | os.PathLike[str]) -> Path:
    """The path that a user meant: `~` and `~user` are expanded, `file:///x` is `/x`.

    Raises:
        UserError: it is empty, an address of another machine, or names a user who is not known here.
    """
    text = os.fspath(text)
    if not text or "\0" in text:
        raise UserError(f"{text!r} is not a path; name a file or a folder")
    if on_this_machine := re.match(r"file:(?://(?:localhost)?(?=/)|(?=/[^/]))", text, re.IGNORECASE):
        return Path(unquote(text[on_this_machine.end() :]))
    # One slash is what is left of an address that has been a Path.
    if "://" in text or re.match(r"[a-z][a-z0-9+.-]+:/", text, re.IGNORECASE):
        scheme = text.partition(":/")[0].rpartition("::")[2].lower()
        raise UserError(
            f"{text} is not on this machine; name a local or mounted folder or file, and copy between the two "
            f"with {_COPIED_WITH.get(scheme, 'the tool of that store')}"
        )
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        user = text.partition("/")[0]
        raise UserError(f"{text}: {user} is not a user of this machine; write ./{text} if it is a name") from error


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Hex digest of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def committed(path: Path) -> Iterator[Path]:
    """A path to write to; the file is there under its own name, whole and durably, once this ends well.

    An exception leaves nothing behind. Whoever writes the same file meanwhile has another path; the last rename wins.
    """
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")
    try:
        yield partial
        flush(partial)
        os.replace(partial, path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        name_full_disk(error, path)
        raise
    flush(path.parent)


def commit_file(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, and durably."""
    with committed(path) as partial:
        partial.write_bytes(data)


def name_full_disk(error: BaseException, path: Path) -> None:
    """Put the path into an error that says that there is no room: of a write the system does not say where."""
    if isinstance(error, OSError) and error.errno in NO_ROOM and not error.filename:
        error.filename = str(path)


def check_writable(path: Path, way_out: str) -> None:
    """Try at the start what `committed` will need at the end: a folder, made if need be, and a file in it.

    Leaves nothing behind.

    Raises:
        UserError: the file could not be written.
    """
    made: list[Path] = []
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        for folder in reversed(path.parents):
            if not folder.is_dir():
                folder.mkdir()
                made.append(folder)
        partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")
        try:
            partial.touch()
            partial.unlink()
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error
    except OSError as error:
        raise cannot(error, path, "written", way_out) from error
    finally:
        for folder in reversed(made):
            with suppress(OSError):  # another process has put something there meanwhile
                folder.rmdir()


def flush(path: Path) -> None:
    """Return only when the file, or the folder's list of files, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class LockedError(UserError):
    """Somebody holds the lock of a folder: another process, or this one already."""

    def __init__(self, folder: Path, who: str, holder: str, *, is_ours: bool):
        super().__init__(f"another {who} is at work in {folder} ({holder}); let it finish")
        self.holder = holder
        self.is_ours = is_ours


@contextmanager
def locked(folder: Path, who: str) -> Iterator[None]:
    """Keep all others that lock the folder out of it until the end; the folder is made if need be.

    who: of whom only one may be there, such as `pack`.

    FOLDER/lock stays. Only with the whole folder may who holds the lock remove it.

    Raises:
        LockedError: somebody is at work there.
        UserError: the folder cannot be made, or the disk has no locks.
        OSError: the file cannot be made, or there is no room.
    """
    descriptor = _open_locked(folder, who)
    try:
        with suppress(OSError):  # a name is not worth an end on a full disk
            os.pwrite(descriptor, f"process {os.getpid()} on {platform.node()}".encode(), 0)
        yield
    finally:
        os.ftruncate(descriptor, 0)  # equal runs leave equal files
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
        # Before it is opened: to close it would give up the lock that this process has.
        if path.exists() and _identity(path) in _locked:
            raise LockedError(folder, who, "this process", is_ours=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            is_alone = lock_file(descriptor)
            holder = os.pread(descriptor, 200, 0).decode(errors="replace") or "another process"
        except OSError as error:
            os.close(descriptor)
            raise cannot(error, path, "locked", "name a folder on a disk that can lock files") from error
        if not is_alone:
            os.close(descriptor)
            raise LockedError(folder, who, holder, is_ours=False)
        # Whoever held it before may have removed it since it was opened: then nobody else would see this lock.
        if path.exists() and _identity(path) == _identity(descriptor):
            os.ftruncate(descriptor, 0)
            return descriptor
        unlock_file(descriptor)


_locked: set[tuple[int, int]] = set()
"""Device and inode of the files that this process has locked."""


def lock_file(descriptor: int) -> bool:
    """Lock an open file until `unlock_file`, or until this process ends; False if somebody holds it.

    A record lock: other machines see it over NFS, and child processes, which may outlive this one, do not inherit it.
    It keeps out other processes only, so what this one holds is remembered.

    Raises:
        OSError: the disk cannot lock files, or not now.
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
    """Give up the lock and close the file."""
    _locked.discard(_identity(descriptor))
    os.close(descriptor)


def _identity(file: int | Path) -> tuple[int, int]:
    status = os.stat(file)
    return status.st_dev, status.st_ino


def lacks_room(error: OSError) -> bool:
    """Whether a write failed for want of room: a full disk or a used-up quota."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def read_file(path: str | os.PathLike[str], way_out: str) -> bytes:
    """The bytes of a file that the user named or pointed at.

    Raises:
        ValueError: it cannot be read; the message says which, why, and the way out.
    """
    try:
        with open(local_path(path), "rb") as file:
            return file.read()
    except OSError as error:
        raise cannot(error, path, "read", way_out) from error


def read_text(path: str | os.PathLike[str], way_out: str) -> str:
    """The same as text in UTF-8."""
    try:
        return read_file(path, way_out).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{os.fspath(path)} is not UTF-8 at byte {error.start}; save it as UTF-8") from error


def read_lines(path: str | os.PathLike[str], way_out: str) -> list[str]:
    """The lines of a text in UTF-8, which end at LF or CRLF and at no other character."""
    lines = [line.removesuffix("\r") for line in read_text(path, way_out).split("\n")]
    return lines[:-1] if not lines[-1] else lines


def cannot(error: OSError, path: str | os.PathLike[str], done: str, way_out: str) -> UserError:
    """What the system refused, as a user's mistake; `error.filename` tells more than the path where it is set."""
    name = PARTIAL.sub("", os.fsdecode(error.filename or path))
    return UserError(f"{name} cannot be {done}: {error.strerror or error}; {way_out}")
