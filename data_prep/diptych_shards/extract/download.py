"""A file on the web, read once from its first byte to its last."""

from __future__ import annotations

import io
import time
import urllib.error
import urllib.request
from typing import Any

_TIMEOUT_SECONDS = 60.0
_RETRY_SECONDS = (1, 5, 15, 60, 60)


class Download(io.RawIOBase):
    """A file on the web, read once; goes on where a connection broke."""

    def __init__(self, url: str):
        self._url = url
        self._position = 0
        self.size: int | None = None
        """In bytes, as the server says."""
        self.version: str | None = None
        """Its ETag, or else when it was changed."""
        self._tag: str | None = None
        self._answer: Any = None
        self._connect_patiently()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        for seconds in (*_RETRY_SECONDS, None):
            try:
                if self._answer is None:
                    self._connect()
                num_bytes = self._answer.readinto(buffer)
                if num_bytes == 0 and self.size is not None and self._position < self.size:
                    raise ConnectionError(f"{self._url} ended at byte {self._position:,} of {self.size:,}")
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
            self.size = int(length) if length and length.isdecimal() else None
            self._tag = answer.headers.get("ETag")
            self.version = self._tag or answer.headers.get("Last-Modified")
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
