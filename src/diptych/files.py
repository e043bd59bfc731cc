"""Local paths, and files that are written completely or not at all and survive a power cut."""

from __future__ import annotations

import difflib
import errno
import hashlib
import os
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import unquote

from diptych.errors import UserError
from diptych.terminal import shown

PARTIAL = re.compile(r"(\.[0-9a-f]{8})?\.partial$")
"""The suffix of a file's name until the file is complete."""

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a write on a full disk, above a quota, or above the maximum size of a file."""
NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)
"""Errors of opening one file more than the process or the system may."""

_COPIED_WITH = {
    "s3": "`aws s3 sync`",
    "gs": "`gcloud storage rsync -r`",
    "hf": "`hf upload` or `hf download`",
    "az": "`azcopy sync`",
}
"""URL scheme of a store → the command that copies to and from it."""


def local_path(text: str | os.PathLike[str]) -> Path:
    """The path that a user meant: `~` and `~user` are expanded, `file:///x` is `/x`.

    Raises:
        UserError: it is empty, is a URL of another machine, or names an unknown user.
    """
    text = os.fspath(text)
    if not text or "\0" in text:
        raise UserError(f"{text!r} is not a path; name a file or a folder")
    if on_this_machine := re.match(r"file:(?://(?:localhost)?(?=/)|(?=/[^/]))", text, re.IGNORECASE):
        return Path(unquote(text[on_this_machine.end() :]))
    # A Path reduces the two slashes of a URL to one.
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
    """The SHA-256 of a file, as hex digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def committed(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to, and at the end of the block rename it to `path`, durably.

    After an exception nothing is left. Two processes that write the same file use different temporary paths; the last
    rename wins.
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
    """Write a file completely or not at all, and durably."""
    with committed(path) as partial:
        partial.write_bytes(data)


@contextmanager
def writing(path: Path, way_out: str) -> Iterator[None]:
    """Create the folder of a file that the user named, which the block then writes.

    Raises:
        UserError: it cannot be written; the message names the file, the reason and the way out.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise cannot(error, path, "written", way_out) from error


def name_full_disk(error: BaseException, path: Path) -> None:
    """Add the path to an error about a full disk, since the system does not give the path of a failed write."""
    if isinstance(error, OSError) and error.errno in NO_ROOM and not error.filename:
        error.filename = str(path)


def check_writable(path: Path, way_out: str) -> None:
    """Check at the start of a command that `committed` will be able to write the file at its end.

    Creates missing folders and a test file, and removes both again.

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


def check_folder(path: Path, expected: str) -> None:
    """Check that the user named a folder that exists. expected: what the folder should contain.

    Raises:
        UserError: it is not a folder, or does not exist.
    """
    if not path.is_dir():
        what = "is not a folder" if path.exists() else "does not exist"
        raise UserError(f"{shown(path)} {what}; expected a folder of {expected}")


def no_such_path(path: Path, expected: str) -> UserError:
    """The error that a path does not exist: it suggests the nearest name in the same folder, or says what to give."""
    try:
        names = os.listdir(path.parent)
    except OSError:
        names = []
    near = difflib.get_close_matches(path.name, names, n=1)
    return UserError(f"{path} does not exist; " + (f"did you mean {path.parent / near[0]}?" if near else expected))


class OpenFile:
    """A file that is open until nothing refers to it."""

    def __init__(self, descriptor: int):
        self.descriptor = descriptor

    def __del__(self) -> None:
        os.close(self.descriptor)


def flush(path: Path) -> None:
    """Wait until the file, or the list of files of a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lacks_room(error: OSError) -> bool:
    """Whether a write failed because the disk is full or a quota is used up."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def read_file(path: str | os.PathLike[str], way_out: str) -> bytes:
    """The bytes of a file that the user named.

    Raises:
        ValueError: it cannot be read; the message names the file, the reason and the way out.
    """
    try:
        with open(local_path(path), "rb") as file:
            return file.read()
    except OSError as error:
        raise cannot(error, path, "read", way_out) from error


def read_text(path: str | os.PathLike[str], way_out: str) -> str:
    """The text of a UTF-8 file that the user named; raises as `read_file` does."""
    try:
        return read_file(path, way_out).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{os.fspath(path)} is not UTF-8 at byte {error.start}; save it as UTF-8") from error


def read_lines(path: str | os.PathLike[str], way_out: str) -> list[str]:
    """The lines of a UTF-8 file that the user named; only LF and CRLF end a line."""
    lines = [line.removesuffix("\r") for line in read_text(path, way_out).split("\n")]
    return lines[:-1] if not lines[-1] else lines


def cannot(error: OSError, path: str | os.PathLike[str], done: str, way_out: str) -> UserError:
    """Turn the system's error into a user's mistake; it names `error.filename` if set, since that is more precise."""
    name = PARTIAL.sub("", os.fsdecode(error.filename or path))
    return UserError(f"{name} cannot be {done}: {error.strerror or error}; {way_out}")


def short_names(folders: Sequence[Path]) -> list[str]:
    """The shortest end of each path that is no end of another one."""
    paths = [Path(os.path.abspath(folder)).parts for folder in folders]

    def name(parts: tuple[str, ...]) -> str:
        ends = (parts[-depth:] for depth in range(1, len(parts)))
        alone = (end for end in ends if sum(other[-len(end) :] == end for other in paths) == 1)
        return os.path.join(*next(alone, parts))

    return [name(parts) for parts in paths]
