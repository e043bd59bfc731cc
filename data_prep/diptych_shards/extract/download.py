"""Download a file from the web, reading it once from its first byte to its last."""

from __future__ import annotations

import http.client
import io
import itertools
import logging
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any, TypeVar

_TIMEOUT_SECONDS = 60.0
_PAUSES = (1, 5, 15, 60, 60)
"""Seconds between tries while a server answers, but is too busy."""
_PAUSES_WITHOUT_SERVER = (1, 2)
"""The same if the name does not resolve or nothing listens at the port: mostly a mistake in the address."""
_MOST_PAUSES_SECONDS = 600
"""The most for one file: a server that breaks every connection would otherwise be asked forever."""

_Result = TypeVar("_Result")
_log = logging.getLogger(__name__)


class Download(io.RawIOBase):
    """A file on the web, read once; after a broken connection, reading resumes where it stopped.

    Raises:
        FileNotFoundError: the server says that the file does not exist.
        OSError: the file cannot be read; it is tried again for a while if that may help.
    """

    def __init__(self, url: str):
        self._url = url
        self._position = 0
        self.size: int | None = None
        """Bytes, as the server says."""
        self.version: str | None = None
        """Its ETag, or else its time of change."""
        self._tag: str | None = None
        self._answer: Any = None
        self._paused_seconds = 0
        self._with_retries(self._connect)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._with_retries(lambda: self._read(buffer))

    def close(self) -> None:
        if self._answer is not None:
            self._answer.close()
            self._answer = None
        super().close()

    def _read(self, buffer: Any) -> int:
        if self._answer is None:
            self._connect()
        num_bytes: int = self._answer.readinto(buffer)
        if num_bytes == 0 and self.size is not None and self._position < self.size:
            raise ConnectionError(f"it ended at byte {self._position:,} of {self.size:,}")
        self._position += num_bytes
        return num_bytes

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
            raise _FinalError(f"the server does not continue at byte {self._position:,}, or the file has changed")
        if not self._position:
            length = answer.headers.get("Content-Length")
            self.size = int(length) if length and length.isdecimal() else None
            self._tag = answer.headers.get("ETag")
            self.version = self._tag or answer.headers.get("Last-Modified")
        self._answer = answer

    def _with_retries(self, work: Callable[[], _Result]) -> _Result:
        for num_failed in itertools.count():
            try:
                return work()
            except (OSError, ValueError, http.client.HTTPException) as error:
                if self._answer is not None:
                    self._answer.close()
                    self._answer = None
                cause = error.reason if type(error) is urllib.error.URLError else error
                if isinstance(cause, urllib.error.HTTPError):
                    cause.close()
                pauses = self._pauses_after(cause)
                if num_failed >= len(pauses) or self._paused_seconds > _MOST_PAUSES_SECONDS:
                    tries = "" if num_failed == 0 else f" ({num_failed + 1} tries)"
                    kind = FileNotFoundError if _is_missing(cause) else OSError
                    raise kind(f"{self._url} cannot be read: {_cause_in_words(cause)}{tries}") from error
                if not self._paused_seconds:
                    _log.warning("%s: %s; trying again for %d s", self._url, _cause_in_words(cause), sum(pauses))
                self._paused_seconds += pauses[num_failed]
                time.sleep(pauses[num_failed])
        raise AssertionError("counting does not end")

    def _pauses_after(self, cause: object) -> tuple[int, ...]:
        if isinstance(cause, urllib.error.HTTPError):
            return _PAUSES if cause.code >= 500 or cause.code in (408, 425, 429) else ()
        if isinstance(cause, _FinalError | http.client.InvalidURL | UnicodeError | ssl.SSLCertVerificationError):
            return ()
        if isinstance(cause, socket.gaierror | ConnectionRefusedError) and not self._position:
            return _PAUSES_WITHOUT_SERVER
        return _PAUSES


def _is_missing(cause: object) -> bool:
    return isinstance(cause, urllib.error.HTTPError) and cause.code in (404, 410)


def _cause_in_words(cause: object) -> str:
    if isinstance(cause, OSError) and cause.strerror and not isinstance(cause, urllib.error.HTTPError):
        return cause.strerror
    return str(cause) or type(cause).__name__


class _FinalError(OSError):
    """An error after which another try does not help."""
