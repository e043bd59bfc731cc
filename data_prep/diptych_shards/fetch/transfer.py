"""Send one GET request with curl, and receive the wanted part of the answer within limits.

It follows no redirect, decodes nothing, and connects to no address that the gate refuses. What the answer means is
decided in `answer` and `dispatch`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Any

import certifi
import pycurl

from diptych_shards.fetch.answer import Answer, Wanted, read_headers
from diptych_shards.fetch.outcome import FetchReason
from diptych_shards.fetch.url import Url

MAX_UNWANTED_BYTES = 65_536
"""How much of an unwanted body (the page of a 404) is read, so that the connection can be kept."""
DNS_CACHE_SECONDS = 1800
MAX_HELD_BYTES = 256 * 2**20
"""The limit for all bodies in memory, complete or not."""


@dataclass(frozen=True)
class Limits:
    """The limits of one transfer."""

    connect_seconds: float
    header_seconds: float
    """From the start of the request to the first byte of the body."""
    window_seconds: float
    """The time over which the throughput is measured."""
    min_bytes_per_second: float
    ca_file: str | None
    """Certificates to trust in place of the usual authorities'."""


class Transfer:
    """A request, and after its end the answer. The object and its curl handle are used again and again."""

    def __init__(self, limits: Limits, user_agent: str, memory: BodyMemory, open_socket: Callable[[Any], Any]):
        """open_socket: opens a socket for an address in pycurl's form; None if it may not be connected to."""
        self._limits = limits
        self._memory = memory
        self._open_socket = open_socket
        self._lines: list[bytes] = []
        self.handle = _make_handle(limits, user_agent)
        self.handle.transfer = self
        self.handle.setopt(pycurl.OPENSOCKETFUNCTION, self._open)
        self.handle.setopt(pycurl.HEADERFUNCTION, self._lines.append)
        self.handle.setopt(pycurl.WRITEFUNCTION, self._write)
        self.reset()

    def reset(self) -> None:
        """Forget the last answer."""
        self.answer = Answer()
        self.is_paused = False
        self._paused_at = 0.0
        self._address_was_refused = False
        self._lines.clear()
        self._size = 0  # of the body so far, kept or not
        self._is_keeping = False
        self._open_window(0.0)

    def begin(self, url: Url, tag: Any, wanted: Wanted, *, seconds: float, now: float) -> None:
        """Prepare a request. tag: the caller's own; seconds: after which it is cut off."""
        self.handle.setopt(pycurl.URL, str(url))
        self.tag = tag
        self.wanted = wanted
        self.started = now
        self._deadline = now + seconds

    def end(self, error: tuple[FetchReason, str] | None = None) -> None:
        """Note that the transfer has ended. error: reason and message, if curl gave up."""
        self._read_headers()
        answer = self.answer
        if error is None or answer.is_cut:  # we cut it off, which curl reports as an error
            return
        if self._address_was_refused and not answer.status:
            answer.reason, answer.message = FetchReason.ADDRESS_NOT_PUBLIC, "address is not public"
        else:
            answer.reason, answer.message = error

    def overdue(self, now: float) -> tuple[FetchReason, str] | None:
        """Reason and message if it has exceeded one of its limits; None if it may continue."""
        if self.is_paused:
            return None
        if now >= self._deadline:
            return FetchReason.TIMEOUT, "timed out"
        if not self.answer.status:
            if now - self.started > self._limits.header_seconds:
                return FetchReason.HEADERS_TOO_SLOW, "headers took too long"
            return None
        window = now - self._window_start
        if window >= self._limits.window_seconds:
            if self._size - self._window_size < self._limits.min_bytes_per_second * window:
                return FetchReason.TOO_SLOW, "body too slow"
            self._open_window(now)
        return None

    def excuse(self, seconds: float) -> None:
        """Move its deadlines by the time that nobody read from it, unless it is paused: then they do not count."""
        if self.is_paused:
            return
        self.started += seconds
        self._deadline += seconds
        self._window_start += seconds

    def pause(self) -> None:
        """Note that curl has paused it, and stop its clocks."""
        self.is_paused = True
        self._paused_at = time.monotonic()

    def resume(self) -> None:
        """Let it continue, and start its clocks again."""
        now = time.monotonic()
        self.is_paused = False
        self.excuse(now - self._paused_at)
        self._open_window(now)
        self.handle.pause(pycurl.PAUSE_CONT)

    def _open(self, purpose: int, address: Any) -> Any:
        opened = self._open_socket(address)
        if opened is None:
            self._address_was_refused = True
            return pycurl.SOCKET_BAD
        return opened

    def _write(self, data: bytes) -> int | None:
        """Take a piece of the body. Any result but None makes curl pause or abort the transfer."""
        answer = self.answer
        if not self._size:
            self._begin_body()
            if answer.is_cut or answer.headers is None:
                return 0
        if self._memory.is_full and self._memory.must_pause(self):
            return int(pycurl.WRITEFUNC_PAUSE)
        self._size += len(data)
        if not self._is_keeping:
            if self._size <= MAX_UNWANTED_BYTES:
                return None
            answer.is_cut = True
            return 0
        if self._size > self.wanted.max_bytes:
            answer.is_cut = True
            return 0
        answer.chunks.append(data)
        self._memory.held_bytes += len(data)
        return None

    def _begin_body(self) -> None:
        self._read_headers()
        answer, wanted = self.answer, self.wanted
        if answer.headers is None:
            return  # the answer is a 101, after which no HTTP follows
        self._is_keeping = wanted.keeps_body(answer.status, answer.headers)
        if self._is_keeping and not wanted.takes_part and (answer.headers.content_length or 0) > wanted.max_bytes:
            answer.is_cut = True
        self._open_window(time.monotonic())

    def _read_headers(self) -> None:
        if self.answer.headers is None:
            read = read_headers(self._lines)
            if read is not None:
                self.answer.status, self.answer.headers = read

    def _open_window(self, now: float) -> None:
        self._window_start, self._window_size = now, self._size


class BodyMemory:
    """Counts the bytes of all bodies in memory, and pauses transfers while there is no room."""

    def __init__(self) -> None:
        self.held_bytes = 0
        """Whoever keeps a body adds its size, and subtracts it when the body is freed."""
        self._paused: deque[Transfer] = deque()
        self._spared: Transfer | None = None  # the one that does not pause, so that there is progress

    @property
    def is_full(self) -> bool:
        return self.held_bytes > MAX_HELD_BYTES

    def must_pause(self, transfer: Transfer) -> bool:
        """Pause a transfer for which there is no room; False if it is the one that does not pause."""
        if self._spared is None:
            self._spared = transfer
        if transfer is self._spared:
            return False
        transfer.pause()
        self._paused.append(transfer)
        return True

    def note_end(self, transfer: Transfer) -> None:
        """Note that this transfer has ended."""
        if transfer is self._spared:
            self._spared = None

    def resume(self, in_flight: Container[object]) -> None:
        """Resume the paused transfers that there is room for; in_flight: the transfers that have not ended."""
        while self._paused and (not self.is_full or self._spared is None):
            transfer = self._paused.popleft()
            if not transfer.is_paused or transfer not in in_flight:
                continue
            if self._spared is None:
                self._spared = transfer
            transfer.resume()


def _make_handle(limits: Limits, user_agent: str) -> pycurl.Curl:
    handle = pycurl.Curl()
    handle.setopt(pycurl.NOSIGNAL, 1)
    handle.setopt(pycurl.PROTOCOLS, pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS)
    # No proxy, not even the environment's: the gate would see only the address of the proxy.
    handle.setopt(pycurl.PROXY, "")
    handle.setopt(pycurl.NETRC, pycurl.NETRC_IGNORED)
    handle.setopt(pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_1_1)
    handle.setopt(pycurl.USERAGENT, user_agent)
    handle.setopt(pycurl.HTTPHEADER, ["Accept: image/*,*/*;q=0.5", "Accept-Encoding: identity"])
    handle.setopt(pycurl.CONNECTTIMEOUT_MS, max(1, int(limits.connect_seconds * 1000)))
    handle.setopt(pycurl.DNS_CACHE_TIMEOUT, DNS_CACHE_SECONDS)
    handle.setopt(pycurl.BUFFERSIZE, 131_072)
    handle.setopt(pycurl.CAINFO, limits.ca_file or certifi.where())
    return handle
