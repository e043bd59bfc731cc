"""One GET at a time and many at once: the home of pycurl.

A transfer is one request and its answer: no redirect is followed, nothing is decoded, and no connection is made to an
address that the gate refuses. What an answer means is decided elsewhere.
"""

from __future__ import annotations

import re
import resource
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import certifi
import pycurl

from diptych_shards.fetch.address import AddressGate
from diptych_shards.fetch.outcome import FetchReason
from diptych_shards.fetch.url import Url

MAX_UNWANTED_BYTES = 65_536
"""So much of the body of an answer that is not wanted (a 404's page) is read, to keep the connection."""
MAX_HELD_BYTES = 256 * 2**20
"""Bodies in memory, finished or not; beyond, all but one transfer pause."""
DNS_CACHE_SECONDS = 1800
TELL_AGAIN_SECONDS = 600.0
"""Sooner than libcurl forgets, so that it never has to look up a name."""
MAX_TOLD = 20_000
"""Hosts; libcurl itself drops some of its addresses beyond 29,999."""

_SWEEP_SECONDS = 0.25
_WANTED_HEADERS = re.compile(
    rb"(?im)^(x-robots-tag|content-encoding|content-length|location|retry-after)[ \t]*:[ \t]*(.*?)[ \t\r]*$"
)
_E_TOO_LARGE = 100  # not named by pycurl; before libcurl 8.6 its message alone tells

_STATUS_LINE = re.compile(rb"HTTP/[0-9.]+ +([2-9][0-9]{2})\b").match

_REASONS = {
    pycurl.E_URL_MALFORMAT: FetchReason.bad_url,
    pycurl.E_COULDNT_RESOLVE_HOST: FetchReason.dns_failed,
    pycurl.E_COULDNT_CONNECT: FetchReason.connect_failed,
    pycurl.E_OPERATION_TIMEDOUT: FetchReason.connect_timeout,  # the only clock of curl that is set
    pycurl.E_GOT_NOTHING: FetchReason.no_answer,
    pycurl.E_SEND_ERROR: FetchReason.connection_reset,
    pycurl.E_RECV_ERROR: FetchReason.connection_reset,
    pycurl.E_PARTIAL_FILE: FetchReason.truncated_body,
    pycurl.E_BAD_CONTENT_ENCODING: FetchReason.bad_encoding,
    **dict.fromkeys(
        [
            pycurl.E_SSL_CONNECT_ERROR,
            pycurl.E_PEER_FAILED_VERIFICATION,
            pycurl.E_SSL_CIPHER,
            pycurl.E_SSL_ISSUER_ERROR,
            pycurl.E_SSL_INVALIDCERTSTATUS,
        ],
        FetchReason.tls_failed,
    ),
}
_MESSAGES = {
    FetchReason.bad_url: "not a URL",
    FetchReason.dns_failed: "host not found",
    FetchReason.connect_failed: "connection failed",
    FetchReason.connect_timeout: "connection timed out",
    FetchReason.tls_failed: "TLS failed",
    FetchReason.no_answer: "connection closed without an answer",
    FetchReason.connection_reset: "connection reset",
    FetchReason.truncated_body: "body shorter than announced",
    FetchReason.bad_encoding: "encoding that was not asked for",
    FetchReason.bad_answer: "answer is not HTTP",
    FetchReason.headers_too_large: "headers too large",
    FetchReason.address_not_public: "address is not public",
}


@dataclass(frozen=True)
class Limits:
    """What one transfer may take."""

    connect_seconds: float
    header_seconds: float
    """From the start of the request to the first byte of the body."""
    window_seconds: float
    """Over so long is the throughput measured."""
    min_bytes_per_second: float
    ca_file: str | None
    """Certificates trusted in place of the usual authorities'."""


@dataclass(frozen=True)
class Headers:
    """The headers that matter here."""

    location: str | None
    retry_after: str | None
    content_encoding: str
    content_length: int | None
    robots_tags: Sequence[str]


class Transfer:
    """A request, and after its end the answer. The object and its curl handle are used again."""

    def __init__(self, crowd: Transfers):
        self._crowd = crowd
        self.lines: list[bytes] = []
        self.handle = crowd.make_handle(self)
        self.reset()

    def reset(self) -> None:
        self.tag: Any = None
        self.status = 0
        """0 until the headers of an answer are complete."""
        self.headers: Headers | None = None
        self.chunks: list[bytes] = []
        self.size = 0
        self.reason: FetchReason | None = None
        """Why there is no whole answer."""
        self.message = ""
        self.is_cut = False
        """The body was longer than was wanted of it."""
        self.address_was_refused = False
        self.lines.clear()
        self.keeps_body: Callable[[int, Headers], bool] | None = None
        self.max_bytes = 0
        self.takes_part = False
        self.started = self.deadline = self.window_start = 0.0
        self.window_size = 0
        self.is_paused = False
        self.paused_at = 0.0
        self.is_keeping = False

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)

    def write(self, data: bytes) -> int | None:
        """Called by curl with a piece of the body."""
        if not self.size:
            self._begin_body()
            if self.is_cut:
                return 0
        if self._crowd.held_bytes > MAX_HELD_BYTES and self._crowd.must_pause(self):
            return int(pycurl.WRITEFUNC_PAUSE)
        self.size += len(data)
        if not self.is_keeping:
            if self.size <= MAX_UNWANTED_BYTES:
                return None
            self.is_cut = True
            return 0
        if self.size > self.max_bytes:
            self.is_cut = True
            self.size -= len(data)
            return 0
        self.chunks.append(data)
        self._crowd.held_bytes += len(data)
        return None

    def read_headers(self) -> None:
        """Make status and headers of the lines that came, the last block of them: that of 103 Early Hints is before."""
        lines = self.lines
        if self.headers is not None or not lines:
            return
        start = len(lines) - 1
        while start and lines[start][:5] != b"HTTP/":
            start -= 1
        status = _STATUS_LINE(lines[start])
        if status is None or not any(line in (b"\r\n", b"\n") for line in lines[start:]):
            return  # cut off within them
        self.status = int(status[1])
        values: dict[bytes, list[str]] = {}
        for name, value in _WANTED_HEADERS.findall(b"".join(lines[start:])):
            values.setdefault(name.lower(), []).append(_text(value))
        length = values.get(b"content-length", [""])[-1]
        self.headers = Headers(
            location=values.get(b"location", [None])[0],
            retry_after=values.get(b"retry-after", [None])[0],
            content_encoding=",".join(values.get(b"content-encoding", [])).lower().strip(),
            content_length=int(length) if length.isascii() and length.isdigit() and len(length) < 20 else None,
            robots_tags=values.get(b"x-robots-tag", []),
        )

    def _begin_body(self) -> None:
        self.read_headers()
        headers = self.headers
        assert headers is not None and self.keeps_body is not None
        self.is_keeping = self.keeps_body(self.status, headers)
        if self.is_keeping and not self.takes_part and (headers.content_length or 0) > self.max_bytes:
            self.is_cut = True
        self.window_start = self._crowd.now
        self.window_size = self.size


class Transfers:
    """Transfers in flight over connections that are kept, driven by epoll."""

    def __init__(self, gate: AddressGate, limits: Limits, user_agent: str, in_flight: int, wake_descriptor: int):
        """wake_descriptor: ends a `wait` when it becomes readable."""
        self._gate = gate
        self._limits = limits
        self._user_agent = user_agent
        self._idle: list[Transfer] = []
        self._in_flight: dict[Transfer, None] = {}
        self._paused: deque[Transfer] = deque()
        self._spared: Transfer | None = None  # the one that does not pause
        self.held_bytes = 0
        """Of bodies, until `give_back`."""
        self.wire_bytes = self.requests = self.connections = 0
        self._epoll = select.epoll()
        self._wake_descriptor = wake_descriptor
        self.was_woken = False
        """Whether `wake_descriptor` was readable in the last `wait`."""
        self._epoll.register(wake_descriptor, select.EPOLLIN)
        self._told: dict[tuple[str, int], tuple[tuple[str, ...], float]] = {}  # addresses in libcurl's cache, and when
        self._watched: set[int] = set()
        self._opened: list[socket.socket] = []
        self._curl_timer: float | None = None
        self._next_sweep = 0.0
        self.now = time.monotonic()
        self._multi = pycurl.CurlMulti()
        self._multi.setopt(pycurl.M_SOCKETFUNCTION, self._watch)
        self._multi.setopt(pycurl.M_TIMERFUNCTION, self._set_timer)
        self._multi.setopt(pycurl.M_MAXCONNECTS, _kept_connections(in_flight))

    def __len__(self) -> int:
        return len(self._in_flight)

    def start(
        self,
        url: Url,
        tag: Any,
        *,
        addresses: tuple[str, ...],
        seconds: float,
        max_bytes: int,
        takes_part: bool,
        keeps_body: Callable[[int, Headers], bool],
    ) -> None:
        """Ask for the URL.

        addresses: of its host, if that has to be looked up; seconds: after which the transfer is cut off; takes_part:
        whether the beginning of a body that is longer than `max_bytes` is of use; keeps_body: told status and headers,
        whether the body is wanted.
        """
        transfer = self._idle.pop() if self._idle else Transfer(self)
        transfer.tag = tag
        transfer.max_bytes = max_bytes
        transfer.takes_part = takes_part
        transfer.keeps_body = keeps_body
        transfer.started = self.now = time.monotonic()
        transfer.deadline = transfer.started + seconds
        transfer.handle.setopt(pycurl.URL, str(url))
        if addresses:
            self._tell(transfer, url, addresses)
        self._in_flight[transfer] = None
        self.requests += 1
        self._multi.add_handle(transfer.handle)

    def wait(self, seconds: float) -> list[Transfer]:
        """The transfers that ended, after at most so many seconds; each has to be given back."""
        self.now = time.monotonic()
        if self._curl_timer is not None:
            seconds = min(seconds, self._curl_timer - self.now)
        events = self._epoll.poll(max(seconds, 0.0))
        self.now = time.monotonic()
        self.was_woken = False
        for descriptor, happened in events:
            if descriptor == self._wake_descriptor:
                self.was_woken = True
                continue
            self._multi.socket_action(descriptor, _to_curl(happened))
        if self._curl_timer is not None and self._curl_timer <= self.now:
            self._curl_timer = None
            self._multi.socket_action(pycurl.SOCKET_TIMEOUT, 0)
        while self._opened:
            self._opened.pop().close()  # pycurl has made itself a duplicate
        ended = self._ended()
        if self.now >= self._next_sweep:
            self._next_sweep = self.now + _SWEEP_SECONDS
            ended.extend(self._overdue())
        self._resume()
        return ended

    def give_back(self, transfer: Transfer) -> None:
        """Take back a transfer that ended; its body stays counted until `release`."""
        transfer.reset()
        self._idle.append(transfer)

    def release(self, num_bytes: int) -> None:
        """Bodies of so many bytes are gone from memory."""
        self.held_bytes -= num_bytes

    def excuse(self, seconds: float) -> None:
        """Put off every deadline: for so long nobody listened."""
        for transfer in self._in_flight:
            transfer.started += seconds
            transfer.deadline += seconds
            transfer.window_start += seconds

    def abandon(self) -> None:
        """Break off all that is in flight."""
        self._told.clear()  # by transfers that may not have begun
        for transfer in list(self._in_flight):
            self._end(transfer)
            self.held_bytes -= sum(map(len, transfer.chunks))
            self.give_back(transfer)

    def close(self) -> None:
        self.abandon()
        for transfer in self._idle:
            transfer.handle.close()
        self._idle.clear()
        self._multi.close()
        self._epoll.close()

    def must_pause(self, transfer: Transfer) -> bool:
        """Whether this transfer has to wait until there is memory; one never has, so that something gets done."""
        if self._spared is None:
            self._spared = transfer
        if transfer is self._spared:
            return False
        transfer.is_paused = True
        transfer.paused_at = self.now
        self._paused.append(transfer)
        return True

    def make_handle(self, transfer: Transfer) -> pycurl.Curl:
        handle = pycurl.Curl()
        handle.transfer = transfer
        handle.setopt(pycurl.NOSIGNAL, 1)
        handle.setopt(pycurl.PROTOCOLS, pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS)
        handle.setopt(pycurl.PROXY, "")  # not even one from the environment, which the gate would see instead
        handle.setopt(pycurl.NETRC, pycurl.NETRC_IGNORED)
        handle.setopt(pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_1_1)
        handle.setopt(pycurl.USERAGENT, self._user_agent)
        handle.setopt(pycurl.HTTPHEADER, ["Accept: image/*,*/*;q=0.5", "Accept-Encoding: identity"])
        handle.setopt(pycurl.CONNECTTIMEOUT_MS, max(1, int(self._limits.connect_seconds * 1000)))
        handle.setopt(pycurl.DNS_CACHE_TIMEOUT, DNS_CACHE_SECONDS)
        handle.setopt(pycurl.BUFFERSIZE, 131_072)
        handle.setopt(pycurl.OPENSOCKETFUNCTION, lambda purpose, address: self._open(transfer, address))
        handle.setopt(pycurl.HEADERFUNCTION, transfer.lines.append)
        handle.setopt(pycurl.WRITEFUNCTION, transfer.write)
        handle.setopt(pycurl.CAINFO, self._limits.ca_file or certifi.where())
        return handle

    def _tell(self, transfer: Transfer, url: Url, addresses: tuple[str, ...]) -> None:
        """Put the addresses into libcurl's cache, unless they are there."""
        place = (url.host, url.port)
        told, when = self._told.pop(place, ((), 0.0))
        if told != addresses or self.now - when > TELL_AGAIN_SECONDS:
            joined = ",".join(f"[{address}]" if ":" in address else address for address in addresses)
            transfer.handle.setopt(pycurl.RESOLVE, [f"+{url.host}:{url.port}:{joined}"])
            when = self.now
        self._told[place] = (addresses, when)
        if len(self._told) > MAX_TOLD:
            del self._told[next(iter(self._told))]

    def _open(self, transfer: Transfer, address: Any) -> Any:
        family, kind, protocol, where = address
        if family not in (socket.AF_INET, socket.AF_INET6) or not self._gate.allows(where[0], where[1]):
            transfer.address_was_refused = True
            return pycurl.SOCKET_BAD
        self.connections += 1
        opened = socket.socket(family, kind, protocol)
        self._opened.append(opened)
        return opened

    def _watch(self, event: int, descriptor: int, multi: Any, data: Any) -> None:
        if event == pycurl.POLL_REMOVE:
            if descriptor in self._watched:
                self._watched.discard(descriptor)
                try:
                    self._epoll.unregister(descriptor)
                except OSError:
                    pass  # closed already, and gone from epoll with that
            return
        mask = (select.EPOLLIN if event & pycurl.POLL_IN else 0) | (select.EPOLLOUT if event & pycurl.POLL_OUT else 0)
        if descriptor not in self._watched:
            self._watched.add(descriptor)
            self._epoll.register(descriptor, mask)
        else:
            self._epoll.modify(descriptor, mask)

    def _set_timer(self, milliseconds: int) -> None:
        self._curl_timer = None if milliseconds < 0 else time.monotonic() + milliseconds / 1000

    def _ended(self) -> list[Transfer]:
        ended = []
        more = 1
        while more:
            more, whole, broken = self._multi.info_read()
            for handle in whole:
                transfer = handle.transfer
                self._end(transfer)
                ended.append(transfer)
            for handle, number, message in broken:
                transfer = handle.transfer
                self._end(transfer)
                _explain(transfer, number, message)
                ended.append(transfer)
        return ended

    def _end(self, transfer: Transfer) -> None:
        handle = transfer.handle
        transfer.read_headers()
        self.wire_bytes += handle.getinfo(pycurl.SIZE_DOWNLOAD_T) + handle.getinfo(pycurl.HEADER_SIZE)
        self._multi.remove_handle(handle)
        del self._in_flight[transfer]
        if transfer is self._spared:
            self._spared = None

    def _overdue(self) -> Iterable[Transfer]:
        for transfer in list(self._in_flight):
            verdict = self._verdict(transfer)
            if verdict is not None:
                self._end(transfer)
                transfer.reason, transfer.message = verdict
                yield transfer

    def _verdict(self, transfer: Transfer) -> tuple[FetchReason, str] | None:
        if transfer.is_paused:
            return None
        if self.now >= transfer.deadline:
            return FetchReason.timeout, "timed out"
        if not transfer.status:
            if self.now - transfer.started > self._limits.header_seconds:
                return FetchReason.headers_too_slow, "headers took too long"
            return None
        window = self.now - transfer.window_start
        if window >= self._limits.window_seconds:
            if transfer.size - transfer.window_size < self._limits.min_bytes_per_second * window:
                return FetchReason.too_slow, "body too slow"
            transfer.window_start, transfer.window_size = self.now, transfer.size
        return None

    def _resume(self) -> None:
        while self._paused and (self.held_bytes <= MAX_HELD_BYTES or self._spared is None):
            transfer = self._paused.popleft()
            if not transfer.is_paused or transfer not in self._in_flight:
                continue
            transfer.is_paused = False
            transfer.started += self.now - transfer.paused_at
            transfer.deadline += self.now - transfer.paused_at
            transfer.window_start, transfer.window_size = self.now, transfer.size
            if self._spared is None:
                self._spared = transfer
            transfer.handle.pause(pycurl.PAUSE_CONT)


def _explain(transfer: Transfer, number: int, message: str) -> None:
    """Say why curl gave up, unless it only did what it was told."""
    if transfer.is_cut:
        return
    if transfer.address_was_refused and not transfer.status:
        reason = FetchReason.address_not_public
    elif number == _E_TOO_LARGE or "response headers" in message:
        reason = FetchReason.headers_too_large
    else:
        reason = _REASONS.get(number, FetchReason.bad_answer)
    transfer.reason, transfer.message = reason, _MESSAGES[reason]


def _text(value: bytes) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _to_curl(happened: int) -> int:
    action = 0
    if happened & (select.EPOLLIN | select.EPOLLHUP):
        action |= pycurl.CSELECT_IN
    if happened & select.EPOLLOUT:
        action |= pycurl.CSELECT_OUT
    if happened & select.EPOLLERR:
        action |= pycurl.CSELECT_ERR
    return action


def _kept_connections(in_flight: int) -> int:
    """Four times what is in flight, as far as the limit of open files allows, which is raised if it can be."""
    wanted = 4 * in_flight
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = wanted + in_flight + 512 if hard == resource.RLIM_INFINITY else min(hard, wanted + in_flight + 512)
    if soft != resource.RLIM_INFINITY and soft < limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        soft = limit
    return wanted if soft == resource.RLIM_INFINITY else max(in_flight, min(wanted, soft - in_flight - 256))
