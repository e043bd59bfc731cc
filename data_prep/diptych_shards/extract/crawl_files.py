"""Find and open the files of a crawl: local, on the web or in a bucket; alone, in folders, or in a list of paths."""

from __future__ import annotations

import gzip
import io
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from diptych.errors import UserError
from diptych.files import local_path
from diptych.remote_files import is_missing, is_remote, what_failed, why_unreadable
from diptych_shards.extract.download import Download

COMMON_CRAWL = "https://data.commoncrawl.org/"
_SUFFIXES = (".warc.gz", ".warc", ".wat.gz", ".wat")
_PATHS = (".paths", ".paths.gz")
_WEB = ("http://", "https://")
_BUFFER_BYTES = 1 << 20


class Origin(NamedTuple):
    """The file that a table was made of."""

    location: str
    """The address; of a local file, its absolute path without links."""
    size: int | None
    """Bytes, as stored."""
    version: str | None
    """Changes with the content: the time of change in nanoseconds; of a remote file its ETag, or a date."""


def expand(locations: Iterable[str], prefix: str = COMMON_CRAWL) -> list[str]:
    """Replace folders by their files, and `.paths[.gz]` lists by the files in them.

    Raises:
        UserError: a file does not exist, or a folder or a list is empty.
    """
    found: list[str] = []
    for location in locations:
        if not is_remote(location):
            location = str(local_path(location))
        if location.endswith(_PATHS):
            found += _listed(location, prefix)
        elif is_remote(location):
            found.append(location)
        elif Path(location).is_dir():
            inside = sorted(str(path) for path in Path(location).iterdir() if path.name.endswith(_SUFFIXES))
            if not inside:
                raise UserError(f"{location} holds no {', '.join(_SUFFIXES)}")
            found += inside
        elif not Path(location).exists():
            raise UserError(f"{location} does not exist")
        else:
            found.append(str(Path(location)))
    return list(dict.fromkeys(found))


def known_origin(location: str) -> Origin:
    """What is known about a file without a request: only the address if it is remote or does not exist."""
    if is_remote(location):
        return Origin(location, None, None)
    path = os.path.realpath(location)
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return Origin(path, None, None)
    return Origin(path, status.st_size, str(status.st_mtime_ns))


def require_readable(locations: Iterable[str]) -> None:
    """Check that the installed packages can read from all locations.

    Raises:
        UserError: they cannot read from one of them.
    """
    one_each = {location.partition("://")[0]: location for location in locations if is_remote(location)}
    for location in one_each.values():
        if not location.startswith(_WEB) and (why := why_unreadable(location)):
            raise UserError(f"{location}: {why}")


def open_location(location: str) -> tuple[IO[bytes], Origin]:
    """Open a file for reading from its first byte.

    Raises:
        UserError: no installed package can read from there.
        OSError: it cannot be opened.
    """
    if location.startswith(_WEB):
        download = Download(location)
        origin = Origin(location, download.size, download.version)
        return io.BufferedReader(download, _BUFFER_BYTES), origin
    if not is_remote(location):
        return open(location, "rb", buffering=0), known_origin(location)
    import fsspec

    require_readable([location])
    with _as_os_errors(location):
        file = fsspec.open(location, "rb").open()
        details = getattr(file, "details", None)
    details = details if isinstance(details, dict) else {}
    version = details.get("ETag") or details.get("LastModified") or details.get("mtime")
    origin = Origin(location, details.get("size"), None if version is None else str(version))
    return io.BufferedReader(_StoredFile(file, location), _BUFFER_BYTES), origin


class _StoredFile(io.RawIOBase):
    """A file that fsspec opened."""

    def __init__(self, file: Any, location: str):
        self._file = file
        self._location = location

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with _as_os_errors(self._location):
            content = self._file.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        self._file.close()
        super().close()


@contextmanager
def _as_os_errors(location: str) -> Iterator[None]:
    """Raise one kind of error for all stores, with the name of the file, which some stores omit.

    Raises:
        OSError: any error of the store; a FileNotFoundError if the file does not exist.
    """
    try:
        yield
    except Exception as error:
        kind = FileNotFoundError if is_missing(location, error) else OSError
        raise kind(f"{location} {what_failed(location, error)}") from error


def _listed(location: str, prefix: str) -> list[str]:
    file, _ = open_location(location)
    with file:
        content = file.read()
    try:
        lines = (gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content).decode().split()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise UserError(f"{location} is not a list of paths: {error}") from None
    if not lines:
        raise UserError(f"{location} lists no path")
    return [line if is_remote(line) else f"{prefix.rstrip('/')}/{line.lstrip('/')}" for line in lines]
