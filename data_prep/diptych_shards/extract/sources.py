"""Where crawls lie: files here, on the web, in a bucket; alone, in folders, or named in a crawl's list of paths."""

from __future__ import annotations

import gzip
import io
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

from diptych_shards.extract.options import ExtractError

COMMON_CRAWL = "https://data.commoncrawl.org/"
_SUFFIXES = (".warc.gz", ".warc", ".wat.gz", ".wat")
_PATHS = (".paths", ".paths.gz")
_TIMEOUT_SECONDS = 60.0
_RETRY_SECONDS = (1, 5, 15, 60, 60)
_BUFFER_BYTES = 1 << 20


def expand(locations: Iterable[str], prefix: str = COMMON_CRAWL) -> list[str]:
    """The files meant: those of a folder, those that a `.paths[.gz]` lists, each other as it is.

    Raises:
        ExtractError: there is no such file, or nothing in the folder or the list.
    """
    found: list[str] = []
    for location in locations:
        if location.endswith(_PATHS):
            found += _listed(location, prefix)
        elif _is_remote(location):
            found.append(location)
        elif Path(location).is_dir():
            inside = sorted(str(path) for path in Path(location).iterdir() if path.name.endswith(_SUFFIXES))
            if not inside:
                raise ExtractError(f"{location} holds no {', '.join(_SUFFIXES)}")
            found += inside
        elif not Path(location).exists():
            raise ExtractError(f"{location} does not exist")
        else:
            found.append(location)
    return list(dict.fromkeys(found))


def open_location(location: str) -> IO[bytes]:
    """Its bytes from the first on.

    Raises:
        ExtractError: nothing installed can read from there.
        OSError: it cannot be opened.
    """
    if location.startswith(("http://", "https://")):
        return io.BufferedReader(_Download(location), _BUFFER_BYTES)  # type: ignore[arg-type]
    if not _is_remote(location):
        return open(location, "rb", buffering=0)
    try:
        import fsspec

        return fsspec.open(location, "rb").open()
    except ImportError as error:  # fsspec itself, or what it needs for this scheme
        scheme = location.partition("://")[0]
        needed = "s3fs" if scheme == "s3" else "fsspec and what it asks for"
        raise ExtractError(f"{location}: to read {scheme}://, pip install {needed} ({error})") from None
    except (OSError, ValueError):
        raise
    except Exception as error:  # each store has errors of its own
        raise OSError(f"{location} cannot be opened: {type(error).__name__}: {error}") from error


def _listed(location: str, prefix: str) -> list[str]:
    with open_location(location) as file:
        content = file.read()
    try:
        lines = (gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content).decode().split()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ExtractError(f"{location} is no list of paths: {error}") from None
    if not lines:
        raise ExtractError(f"{location} lists no path")
    return [line if _is_remote(line) else f"{prefix.rstrip('/')}/{line.lstrip('/')}" for line in lines]


def _is_remote(location: str) -> bool:
    return "://" in location


class _Download(io.RawIOBase):
    """A file on the web, read once; goes on where a connection broke."""

    def __init__(self, url: str):
        self._url = url
        self._position = 0
        self._size: int | None = None
        self._answer: Any = None
        self._tag: str | None = None
        self._connect_patiently()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        for seconds in (*_RETRY_SECONDS, None):
            try:
                if self._answer is None:
                    self._connect()
                num_bytes = self._answer.readinto(buffer)
                if num_bytes == 0 and self._size is not None and self._position < self._size:
                    raise ConnectionError(f"{self._url} ended at byte {self._position:,} of {self._size:,}")
                self._position += num_bytes
                return num_bytes
            except (OSError, ValueError) as error:
                self._give_up_or_wait(error, seconds)
        raise AssertionError("the last try raises")

    def close(self) -> None:
        if self._answer is not None:
            self._answer.close()
            self._answer = None
        super().close()

    def _connect_patiently(self) -> None:
        for seconds in (*_RETRY_SECONDS, None):
            try:
                return self._connect()
            except OSError as error:
                self._give_up_or_wait(error, seconds)

    def _connect(self) -> None:
        request = urllib.request.Request(
            self._url, headers={"User-Agent": "diptych-shards", "Accept-Encoding": "identity"}
        )
        if self._position:
            request.add_header("Range", f"bytes={self._position}-")
            if self._tag:
                request.add_header("If-Range", self._tag)
        answer = urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS)
        if self._position and answer.status != 206:
            answer.close()
            raise _LostError(f"{self._url} does not go on at byte {self._position:,}, or has changed")
        if not self._position:
            length = answer.headers.get("Content-Length")
            self._size = int(length) if length and length.isdecimal() else None
            self._tag = answer.headers.get("ETag")
        self._answer = answer

    def _give_up_or_wait(self, error: Exception, seconds: float | None) -> None:
        if self._answer is not None:
            self._answer.close()
            self._answer = None
        is_refused = (
            isinstance(error, urllib.error.HTTPError) and error.code < 500 and error.code not in (408, 425, 429)
        )
        if seconds is None or is_refused or isinstance(error, _LostError):
            raise OSError(f"{self._url} cannot be read: {error}") from error
        time.sleep(seconds)


class _LostError(OSError):
    """Trying again does not help."""
