"""Run many transfers at once, over connections that are kept open."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pycurl

from diptych_shards.fetch.address_gate import AddressGate
from diptych_shards.fetch.answer import Wanted
from diptych_shards.fetch.curl_loop import CurlLoop
from diptych_shards.fetch.outcome import FetchReason
from diptych_shards.fetch.transfer import BodyMemory, Limits, Transfer
from diptych_shards.fetch.url import Url

CACHE_AGAIN_SECONDS = 600.0
"""How often libcurl is given the addresses of a host: before it forgets them, so that it never looks up a name."""
MAX_CACHED_HOSTS = 20_000
"""Hosts whose addresses libcurl has; beyond 29,999 it would drop some by itself."""
SWEEP_SECONDS = 0.25
"""How often to look for transfers that have exceeded a limit."""


class TransferPool:
    """Starts transfers and returns those that have ended. Connections and `Transfer` objects are used again."""

    def __init__(self, gate: AddressGate, limits: Limits, user_agent: str, memory: BodyMemory, loop: CurlLoop):
        """gate: checks every address before it is connected to; memory: counts the bodies until `give_back`."""
        self.requests = self.connections = self.wire_bytes = 0
        self._gate = gate
        self._limits = limits
        self._user_agent = user_agent
        self._memory = memory
        self._loop = loop
        self._idle: list[Transfer] = []
        self._in_flight: dict[Transfer, None] = {}
        self._cached: dict[tuple[str, int], tuple[tuple[str, ...], float]] = {}  # what libcurl was given, and when
        self._next_sweep = 0.0

    def __len__(self) -> int:
        return len(self._in_flight)

    def start(
        self, url: Url, tag: Any, wanted: Wanted, *, addresses: tuple[str, ...], seconds: float, now: float
    ) -> None:
        """Request a URL. addresses: of its host, if that had to be looked up; seconds: after which it is cut off."""
        transfer = self._idle.pop() if self._idle else self._make_transfer()
        transfer.begin(url, tag, wanted, seconds=seconds, now=now)
        if addresses:
            self._cache_addresses(transfer.handle, url, addresses, now)
        self._in_flight[transfer] = None
        self.requests += 1
        self._loop.add(transfer.handle)

    def wait(self, seconds: float) -> list[Transfer]:
        """Wait at most this many seconds; return the transfers that have ended. Each has to be given back."""
        self._loop.wait(seconds)
        ended = []
        for handle, error in self._loop.ended():
            transfer: Transfer = handle.transfer
            self._end(transfer, error)
            ended.append(transfer)
        if self._loop.now >= self._next_sweep:
            self._next_sweep = self._loop.now + SWEEP_SECONDS
            ended.extend(self._cut_off(self._loop.now))
        self._memory.resume(self._in_flight)
        return ended

    def give_back(self, transfer: Transfer) -> None:
        """Take back a transfer that has ended, and forget its answer."""
        self._memory.held_bytes -= transfer.answer.held_bytes
        transfer.reset()
        self._idle.append(transfer)

    def excuse(self, seconds: float) -> None:
        """Move every deadline by this many seconds, since nobody read from the transfers for so long."""
        for transfer in self._in_flight:
            transfer.excuse(seconds)

    def abandon(self) -> None:
        """Abort all transfers."""
        self._cached.clear()  # a transfer that curl had not started yet has not put its addresses there
        for transfer in list(self._in_flight):
            self._end(transfer)
            self.give_back(transfer)

    def close(self) -> None:
        """Abort all transfers, and close their handles."""
        self.abandon()
        for transfer in self._idle:
            transfer.handle.close()
        self._idle.clear()

    def _make_transfer(self) -> Transfer:
        return Transfer(self._limits, self._user_agent, self._memory, self._open_socket)

    def _open_socket(self, address: Any) -> socket.socket | None:
        family, kind, protocol, where = address
        if family not in (socket.AF_INET, socket.AF_INET6) or not self._gate.allows(where[0], where[1]):
            return None
        self.connections += 1
        return self._loop.open_socket(family, kind, protocol)

    def _cache_addresses(self, handle: pycurl.Curl, url: Url, addresses: tuple[str, ...], now: float) -> None:
        """Put the addresses of a host into libcurl's cache, unless they are there."""
        place = (url.host, url.port)
        cached, when = self._cached.pop(place, ((), 0.0))
        if cached != addresses or now - when > CACHE_AGAIN_SECONDS:
            joined = ",".join(f"[{address}]" if ":" in address else address for address in addresses)
            handle.setopt(pycurl.RESOLVE, [f"+{url.host}:{url.port}:{joined}"])
            when = now
        self._cached[place] = (addresses, when)
        if len(self._cached) > MAX_CACHED_HOSTS:
            del self._cached[next(iter(self._cached))]

    def _end(self, transfer: Transfer, error: tuple[FetchReason, str] | None = None) -> None:
        """End a transfer. error: reason and message, if curl gave up."""
        handle = transfer.handle
        transfer.end(error)
        self.wire_bytes += handle.getinfo(pycurl.SIZE_DOWNLOAD_T) + handle.getinfo(pycurl.HEADER_SIZE)
        self._loop.remove(handle)
        del self._in_flight[transfer]
        self._memory.note_end(transfer)

    def _cut_off(self, now: float) -> Iterator[Transfer]:
        """End the transfers that have exceeded a limit."""
        for transfer in list(self._in_flight):
            overdue = transfer.overdue(now)
            if overdue is not None:
                self._end(transfer)
                transfer.answer.reason, transfer.answer.message = overdue
                yield transfer
