"""Drive libcurl with epoll, and translate its errors into reasons."""

from __future__ import annotations

import resource
import select
import socket
import time
from collections.abc import Iterator

import pycurl

from diptych_shards.fetch.outcome import FetchReason

_E_TOO_LARGE = 100  # pycurl has no name for it; before libcurl 8.6 only the message shows this error

_REASONS = {
    pycurl.E_URL_MALFORMAT: FetchReason.BAD_URL,
    pycurl.E_COULDNT_RESOLVE_HOST: FetchReason.DNS_FAILED,
    pycurl.E_COULDNT_CONNECT: FetchReason.CONNECT_FAILED,
    pycurl.E_OPERATION_TIMEDOUT: FetchReason.CONNECT_TIMEOUT,  # we set no other time limit of curl's
    pycurl.E_GOT_NOTHING: FetchReason.NO_ANSWER,
    pycurl.E_SEND_ERROR: FetchReason.CONNECTION_RESET,
    pycurl.E_RECV_ERROR: FetchReason.CONNECTION_RESET,
    pycurl.E_PARTIAL_FILE: FetchReason.TRUNCATED_BODY,
    pycurl.E_BAD_CONTENT_ENCODING: FetchReason.BAD_ENCODING,
    **dict.fromkeys(
        [
            pycurl.E_SSL_CONNECT_ERROR,
            pycurl.E_PEER_FAILED_VERIFICATION,
            pycurl.E_SSL_CIPHER,
            pycurl.E_SSL_ISSUER_ERROR,
            pycurl.E_SSL_INVALIDCERTSTATUS,
        ],
        FetchReason.TLS_FAILED,
    ),
}
_MESSAGES = {
    FetchReason.BAD_URL: "not a URL",
    FetchReason.DNS_FAILED: "host not found",
    FetchReason.CONNECT_FAILED: "connection failed",
    FetchReason.CONNECT_TIMEOUT: "connection timed out",
    FetchReason.TLS_FAILED: "TLS failed",
    FetchReason.NO_ANSWER: "connection closed without an answer",
    FetchReason.CONNECTION_RESET: "connection reset",
    FetchReason.TRUNCATED_BODY: "body shorter than announced",
    FetchReason.BAD_ENCODING: "encoding that was not asked for",
    FetchReason.BAD_ANSWER: "answer is not HTTP",
    FetchReason.HEADERS_TOO_LARGE: "headers too large",
}


class CurlLoop:
    """Runs many curl handles at once, and keeps their connections open."""

    def __init__(self, in_flight: int, wake_descriptor: int):
        """Make room for `in_flight` handles.

        wake_descriptor: a `wait` ends when this becomes readable.
        """
        self.now = time.monotonic()
        """When the last `wait` stopped waiting."""
        self.was_woken = False
        """Whether `wake_descriptor` was readable in the last `wait`."""
        self._wake_descriptor = wake_descriptor
        self._epoll = select.epoll()
        self._epoll.register(wake_descriptor, select.EPOLLIN)
        self._watched: set[int] = set()
        self._opened: list[socket.socket] = []
        self._timer: float | None = None
        self._multi = pycurl.CurlMulti()
        self._multi.setopt(pycurl.M_SOCKETFUNCTION, self._watch)
        self._multi.setopt(pycurl.M_TIMERFUNCTION, self._set_timer)
        self._multi.setopt(pycurl.M_MAXCONNECTS, _kept_connections(in_flight))

    def add(self, handle: pycurl.Curl) -> None:
        self._multi.add_handle(handle)

    def remove(self, handle: pycurl.Curl) -> None:
        self._multi.remove_handle(handle)

    def open_socket(self, family: int, kind: int, protocol: int) -> socket.socket:
        """Open a socket for pycurl's OPENSOCKETFUNCTION, which duplicates it; ours is closed in `wait`."""
        opened = socket.socket(family, kind, protocol)
        self._opened.append(opened)
        return opened

    def wait(self, seconds: float) -> None:
        """Wait for network events, at most this many seconds, and let curl handle them."""
        if self._timer is not None:
            seconds = min(seconds, self._timer - time.monotonic())
        events = self._epoll.poll(max(seconds, 0.0))
        self.now = time.monotonic()
        self.was_woken = False
        for descriptor, happened in events:
            if descriptor == self._wake_descriptor:
                self.was_woken = True
            else:
                self._multi.socket_action(descriptor, _to_curl(happened))
        if self._timer is not None and self._timer <= self.now:
            self._timer = None
            self._multi.socket_action(pycurl.SOCKET_TIMEOUT, 0)
        while self._opened:
            self._opened.pop().close()

    def ended(self) -> Iterator[tuple[pycurl.Curl, tuple[FetchReason, str] | None]]:
        """The handles that have finished, each with the reason and a message if curl gave up."""
        more = 1
        while more:
            more, whole, broken = self._multi.info_read()
            for handle in whole:
                yield handle, None
            for handle, number, message in broken:
                yield handle, _explain(number, message)

    def close(self) -> None:
        """Close libcurl's part; call this when all handles have been removed."""
        self._multi.close()
        self._epoll.close()

    def _watch(self, event: int, descriptor: int, multi: pycurl.CurlMulti, data: object) -> None:
        if event == pycurl.POLL_REMOVE:
            if descriptor in self._watched:
                self._watched.discard(descriptor)
                try:
                    self._epoll.unregister(descriptor)
                except OSError:
                    pass  # closing a descriptor also removes it from epoll
            return
        mask = (select.EPOLLIN if event & pycurl.POLL_IN else 0) | (select.EPOLLOUT if event & pycurl.POLL_OUT else 0)
        if descriptor not in self._watched:
            self._watched.add(descriptor)
            self._epoll.register(descriptor, mask)
        else:
            self._epoll.modify(descriptor, mask)

    def _set_timer(self, milliseconds: int) -> None:
        self._timer = None if milliseconds < 0 else time.monotonic() + milliseconds / 1000


def _explain(number: int, message: str) -> tuple[FetchReason, str]:
    """Translate an error of curl's into a reason and our message for it.

    number, message: as `CurlMulti.info_read` returns them.
    """
    if number == _E_TOO_LARGE or "response headers" in message:
        reason = FetchReason.HEADERS_TOO_LARGE
    else:
        reason = _REASONS.get(number, FetchReason.BAD_ANSWER)
    return reason, _MESSAGES[reason]


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
    """Raise the limit of open files if possible; return how many connections to keep: at most 4 for each transfer."""
    wanted = 4 * in_flight
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = wanted + in_flight + 512 if hard == resource.RLIM_INFINITY else min(hard, wanted + in_flight + 512)
    if soft != resource.RLIM_INFINITY and soft < limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        soft = limit
    return wanted if soft == resource.RLIM_INFINITY else max(in_flight, min(wanted, soft - in_flight - 256))
