"""Look up host names in our own threads: libcurl has only twenty, which dead names would keep busy.

The number of lookups at a time follows what DNS can take: one more after each answer, half as many after each lookup
that took too long. The results are addresses that the gate allows; libcurl is given these, and looks up nothing.
"""

from __future__ import annotations

import ipaddress
import math
import os
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from queue import SimpleQueue

from diptych.errors import UserError
from diptych_shards.fetch.address_gate import AddressGate
from diptych_shards.fetch.outcome import FetchFailure, FetchReason

MIN_LOOKUPS = 4
MAX_LOOKUPS = 64
"""Lookups at a time. An overloaded name server answers nothing: 500 unknown names took 75 s, half as many 10 s."""
MAX_THREADS = 2 * MAX_LOOKUPS
"""More than lookups: one that took too long keeps its thread until DNS answers."""
MAX_NAMES = 20_000
"""How many names are remembered."""
KNOWN_SECONDS = 600.0
"""How long the addresses of a name are used."""
UNKNOWN_SECONDS = 900.0
"""How long a name without addresses is not looked up again."""
DOWN_SECONDS = 60.0
"""If DNS gives no answer for this long, the names that still wait for their lookup fail."""
CHECK_SECONDS = 0.25
"""How often to look for lookups that take too long; a temporary failure is remembered for as long."""

_NOT_FOUND = FetchFailure(FetchReason.DNS_FAILED.value, "host not found")
_NOT_NOW = FetchFailure(FetchReason.DNS_FAILED.value, "host could not be looked up")
_TOO_SLOW = FetchFailure(FetchReason.DNS_FAILED.value, "looking up the host took too long")
NOT_PUBLIC = FetchFailure(FetchReason.ADDRESS_NOT_PUBLIC.value, "address is not public")

_FINAL_ERRORS = frozenset({socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)})


@dataclass(frozen=True)
class Resolution:
    """What is known about a name."""

    addresses: tuple[str, ...]
    failure: FetchFailure | None
    is_final: bool
    """Whether another lookup soon would fail too."""
    until: float
    """When it has to be looked up again."""


class Resolver:
    """Looks up names. `wake_descriptor` becomes readable when there are answers."""

    def __init__(self, gate: AddressGate, seconds: float, entries: Sequence[str] = ()):
        """Start without threads; `ask` starts them.

        seconds: how long a lookup may take.
        entries: `host:port:address[,address]`, each used in place of DNS.

        Raises:
            UserError: an entry has another form.
        """
        self._gate = gate
        self._seconds = seconds
        self._given = {
            place: self._vet(addresses, None, True, math.inf) for place, addresses in map(parse_entry, entries)
        }
        self._known: dict[str, Resolution] = {}  # in the order of their answers
        self._asked: dict[str, None] = {}  # the names that are being looked up
        self._waiting: dict[str, None] = {}  # those of them that no thread has been given yet
        self._last_answer = 0.0
        self._num_allowed = MAX_LOOKUPS
        self._began: dict[str, float] = {}  # when a thread started on a name; the one dict that threads write
        self._names: SimpleQueue[str | None] = SimpleQueue()
        self._found: SimpleQueue[tuple[str, tuple[str, ...], FetchFailure | None, bool]] = SimpleQueue()
        self._num_threads = self._num_idle = 0
        self._wakes = threading.Lock()
        self._next_look = 0.0
        self.wake_descriptor, self._waker = os.pipe()
        os.set_blocking(self.wake_descriptor, False)
        os.set_blocking(self._waker, False)

    def known(self, host: str, port: int, now: float) -> Resolution | None:
        """What is known about a host; None if it has to be looked up, by `ask`."""
        resolution = self._given.get((host, port)) or self._known.get(host)
        return resolution if resolution is not None and now < resolution.until else None

    def ask(self, host: str) -> None:
        """Start to look up a host; `answered` will yield it."""
        if host in self._asked:
            return
        if not self._asked:
            self._last_answer = time.monotonic()
        self._asked[host] = self._waiting[host] = None
        self._hand_out()

    def answered(self, now: float) -> Iterator[str]:
        """Yield the names that were resolved, failed or timed out since the last call."""
        try:
            while os.read(self.wake_descriptor, 4096):
                pass
        except BlockingIOError:
            pass
        while not self._found.empty():
            host, addresses, failure, is_final = self._found.get()
            self._remember(host, self._vet(addresses, failure, is_final, now))
            self._began.pop(host, None)
            self._num_idle += 1
            self._last_answer = now if is_final else self._last_answer
            if host in self._asked:
                self._end(host, is_slow=not is_final)
                yield host
        if now >= self._next_look:
            self._next_look = now + CHECK_SECONDS
            for host in [host for host in self._asked if now - self._began.get(host, now) > self._seconds]:
                self._give_up(host, now)
                yield host
            if now - self._last_answer > DOWN_SECONDS:
                for host in list(self._waiting):
                    self._give_up(host, now)
                    yield host
        self._hand_out()

    def close(self) -> None:
        """Stop, without waiting for threads whose lookup is running: each ends when DNS answers it."""
        for _ in range(self._num_threads):
            self._names.put(None)
        with self._wakes:
            os.close(self.wake_descriptor)
            os.close(self._waker)
            self._waker = -1

    def _end(self, host: str, *, is_slow: bool) -> None:
        """End the lookup of a host, and adapt the number of lookups at a time."""
        del self._asked[host]
        self._waiting.pop(host, None)
        self._num_allowed = (
            max(MIN_LOOKUPS, self._num_allowed // 2) if is_slow else min(MAX_LOOKUPS, self._num_allowed + 1)
        )

    def _give_up(self, host: str, now: float) -> None:
        self._end(host, is_slow=True)
        self._began.pop(host, None)
        self._remember(host, Resolution((), _TOO_SLOW, False, now + CHECK_SECONDS))

    def _hand_out(self) -> None:
        """Give the names that may be looked up now to threads."""
        while self._waiting and len(self._asked) - len(self._waiting) < self._num_allowed:
            if self._num_idle:
                self._num_idle -= 1
            elif self._num_threads < MAX_THREADS:
                self._num_threads += 1
                threading.Thread(target=self._work, name="resolver", daemon=True).start()
            else:
                break
            host = next(iter(self._waiting))
            del self._waiting[host]
            self._names.put(host)

    def _work(self) -> None:
        while (host := self._names.get()) is not None:
            self._began[host] = time.monotonic()
            self._found.put((host, *_look_up(host)))
            self._wake()

    def _wake(self) -> None:
        # Under a lock, since after `close` the descriptor's number may belong to another file.
        with self._wakes:
            if self._waker >= 0:
                try:
                    os.write(self._waker, b"x")
                except BlockingIOError:
                    pass  # the pipe is full, so it is readable

    def _vet(self, addresses: Iterable[str], failure: FetchFailure | None, is_final: bool, now: float) -> Resolution:
        if failure is not None:
            return Resolution((), failure, is_final, now + (UNKNOWN_SECONDS if is_final else CHECK_SECONDS))
        allowed = tuple(address for address in addresses if self._gate.allows(address, 443))
        if not allowed:
            return Resolution((), NOT_PUBLIC, True, now + UNKNOWN_SECONDS)
        return Resolution(allowed, None, True, now + KNOWN_SECONDS)

    def _remember(self, host: str, resolution: Resolution) -> None:
        self._known.pop(host, None)
        self._known[host] = resolution
        if len(self._known) > MAX_NAMES:
            del self._known[next(iter(self._known))]


def _look_up(host: str) -> tuple[tuple[str, ...], FetchFailure | None, bool]:
    try:
        # As bytes: text would be encoded by Python's IDNA again, which raises its own error for a label of 64 letters.
        found = socket.getaddrinfo(host.encode("ascii"), None, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        is_final = error.errno in _FINAL_ERRORS
        return (), _NOT_FOUND if is_final else _NOT_NOW, is_final
    except (OSError, UnicodeError):
        return (), _NOT_NOW, False
    addresses = dict.fromkeys(str(where[0]) for _, _, _, _, where in found)
    return tuple(addresses), None, True


def parse_entry(entry: str) -> tuple[tuple[str, int], tuple[str, ...]]:
    """Parse `host:port:address[,address]` into ((host, port), addresses).

    Raises:
        UserError: the entry has another form.
    """
    host, _, rest = entry.partition(":")
    port, _, after = rest.partition(":")
    addresses = tuple(address.strip("[] ") for address in after.split(","))
    try:
        if not host or not 0 < int(port) < 65536:
            raise ValueError
        for address in addresses:
            ipaddress.ip_address(address)
    except ValueError:
        raise UserError(f"{entry!r} is not of the form host:port:address, as www.example.org:443:192.0.2.7") from None
    return (host.lower(), int(port)), addresses
