"""Transfers in flight: many at once, over connections that are kept."""

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

TELL_AGAIN_SECONDS = 600.0
"""Sooner than libcurl forgets, so that it never has to look up a name."""
MAX_TOLD = 20_000
"""Hosts; libcurl itself drops some of its addresses beyond 29,999."""
SWEEP_SECONDS = 0.25
"""So often one looks for transfers that take too long."""


class TransferPool:
    """Starts transfers and gives back those that ended; the objects, as the connections, are used again."""

    def __init__(self, gate: AddressGate, limits: Limits, user_agent: str, memory: BodyMemory, loop: CurlLoop):
        """gate: looks at every address before it is connected to; memory: counts the bodies until `give_back`."""
        self.requests = self.connections = self.wire_bytes = 0
        self._gate = gate
        self._limits = limits
        self._user_agent = user_agent
        self._memory = memory
        self._loop = loop
        self._idle: list[Transfer] = []
        self._in_flight: dict[Transfer, None] = {}
        self._told: dict[tuple[str, int], tuple[tuple[str, ...], float]] = {}  # addresses in libcurl's cache, and when
        self._next_sweep = 0.0

    def __len__(self) -> int:
        return len(self._in_flight)

    def start(
        self, url: Url, tag: Any, wanted: Wanted, *, addresses: tuple[str, ...], seconds: float, now: float
    ) -> None:
        """Ask for the URL; addresses: of its host, if that had to be looked up; seconds: after which it is cut off."""
        transfer = self._idle.pop() if self._idle else self._make_transfer()
        transfer.begin(url, tag, wanted, seconds=seconds, now=now)
        if addresses:
            self._tell(transfer.handle, url, addresses, now)
        self._in_flight[transfer] = None
        self.requests += 1
        self._loop.add(transfer.handle)

    def wait(self, seconds: float) -> list[Transfer]:
        """The transfers that ended, after at most so many seconds; each has to be given back."""
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
        """Take back a transfer that ended, and forget its answer."""
        self._memory.held_bytes -= transfer.answer.held_bytes
        transfer.reset()
        self._idle.append(transfer)

    def excuse(self, seconds: float) -> None:
        """Put off every deadline: for so long nobody listened."""
        for transfer in self._in_flight:
            transfer.excuse(seconds)

    def abandon(self) -> None:
        """Break off all that is in flight."""
        self._told.clear()  # addresses given by transfers that may not have started
        for transfer in list(self._in_flight):
            self._end(transfer)
            self.give_back(transfer)

    def close(self) -> None:
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

    def _tell(self, handle: pycurl.Curl, url: Url, addresses: tuple[str, ...], now: float) -> None:
        """Put the addresses into libcurl's cache, unless they are there."""
        place = (url.host, url.port)
        told, when = self._told.pop(place, ((), 0.0))
        if told != addresses or now - when > TELL_AGAIN_SECONDS:
            joined = ",".join(f"[{address}]" if ":" in address else address for address in addresses)
            handle.setopt(pycurl.RESOLVE, [f"+{url.host}:{url.port}:{joined}"])
            when = now
        self._told[place] = (addresses, when)
        if len(self._told) > MAX_TOLD:
            del self._told[next(iter(self._told))]

    def _end(self, transfer: Transfer, error: tuple[FetchReason, str] | None = None) -> None:
        """Take it out of flight; error: curl's, if it gave up."""
        handle = transfer.handle
        transfer.end(error)
        self.wire_bytes += handle.getinfo(pycurl.SIZE_DOWNLOAD_T) + handle.getinfo(pycurl.HEADER_SIZE)
        self._loop.remove(handle)
        del self._in_flight[transfer]
        self._memory.note_end(transfer)

    def _cut_off(self, now: float) -> Iterator[Transfer]:
        for transfer in list(self._in_flight):
            overdue = transfer.overdue(now)
            if overdue is not None:
                self._end(transfer)
                transfer.answer.reason, transfer.answer.message = overdue
                yield transfer
