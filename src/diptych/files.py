"""Files that appear whole or not at all, and stay after a power cut."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    flush(path.parent)


def commit_file(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, and durably."""
    with committed(path) as partial:
        partial.write_bytes(data)


def flush(path: Path) -> None:
    """Return only when the file, or the folder's list of files, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_file(path: str | os.PathLike[str], way_out: str) -> bytes:
    """The bytes of a file that the user named or pointed at.

    Raises:
        ValueError: it cannot be read; the message says which, why, and the way out.
    """
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise cannot(error, path, "read", way_out) from error


def read_text(path: str | os.PathLike[str], way_out: str) -> str:
    """The same as text in UTF-8."""
    try:
        return read_file(path, way_out).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{os.fspath(path)} is no UTF-8 at byte {error.start}; save it as UTF-8") from error


def cannot(error: OSError, path: str | os.PathLike[str], done: str, way_out: str) -> ValueError:
    """What the system refused, as a user's mistake; `error.filename` tells more than the path where it is set."""
    return ValueError(f"{error.filename or os.fspath(path)} cannot be {done}: {error.strerror or error}; {way_out}")
