"""Names into addresses, in threads: libcurl has twenty for all its lookups, and dead names would keep them busy.

How many are looked up together follows what DNS can take: one more after each answer, half after each that it had no
time for. Only addresses that the gate allows come out, and libcurl is given these: the name is looked up once.
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
"""At a time. A name server that is asked for too much answers nobody: 500 unknown names took 75 s, half of them 10."""
MAX_THREADS = 2 * MAX_LOOKUPS
"""Lookups that took too long keep theirs until DNS answers."""
MAX_NAMES = 20_000
"""Remembered."""
KNOWN_SECONDS = 600.0
UNKNOWN_SECONDS = 900.0
"""For so long a name without addresses is not looked up again."""
DOWN_SECONDS = 60.0
"""Without any answer, and what waits for its turn fails."""
OFTEN_SECONDS = 0.25
"""So often one looks for lookups that take too long."""

_NOT_FOUND = FetchFailure(FetchReason.dns_failed.value, "host not found")
_NOT_NOW = FetchFailure(FetchReason.dns_failed.value, "host could not be looked up")
_TOO_SLOW = FetchFailure(FetchReason.dns_failed.value, "looking up the host took too long")
NOT_PUBLIC = FetchFailure(FetchReason.address_not_public.value, "address is not public")

_FINAL_ERRORS = frozenset({socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)})


@dataclass(frozen=True)
class Resolution:
    """What is known of a name."""

    addresses: tuple[str, ...]
    failure: FetchFailure | None
    is_final: bool
    """Whether asking again soon is in vain."""
    until: float


class Resolver:
    """Looks names up; `wake_descriptor` becomes readable when there are answers."""

    def __init__(self, gate: AddressGate, seconds: float, entries: Sequence[str] = ()):
        """entries: `host:port:address[,address]`, which come before DNS; seconds: for one lookup.

        Raises:
            ValueError: for an entry that is none.
        """
        self._gate = gate
        self._seconds = seconds
        self._given = {
            place: self._vet(addresses, None, True, math.inf) for place, addresses in map(parse_entry, entries)
        }
        self._known: dict[str, Resolution] = {}  # in the order of their answers
        self._asked: dict[str, None] = {}
        self._waiting: dict[str, None] = {}  # the asked ones whose turn has not come
        self._last_answer = 0.0
        self._num_allowed = MAX_LOOKUPS
        self._began: dict[str, float] = {}  # when a thread took it; the only one of these that threads write
        self._names: SimpleQueue[str | None] = SimpleQueue()
        self._found: SimpleQueue[tuple[str, tuple[str, ...], FetchFailure | None, bool]] = SimpleQueue()
        self._num_threads = self._num_idle = 0
        self._wakes = threading.Lock()
        self._next_look = 0.0
        self.wake_descriptor, self._waker = os.pipe()
        os.set_blocking(self.wake_descriptor, False)
        os.set_blocking(self._waker, False)

    def known(self, host: str, port: int, now: float) -> Resolution | None:
        """What is known; None if `ask` has to be called."""
        resolution = self._given.get((host, port)) or self._known.get(host)
        return resolution if resolution is not None and now < resolution.until else None

    def ask(self, host: str) -> None:
        """Look the name up; it will be one of `answered`."""
        if host in self._asked:
            return
        if not self._asked:
            self._last_answer = time.monotonic()
        self._asked[host] = self._waiting[host] = None
        self._hand_out()

    def answered(self, now: float) -> Iterator[str]:
        """Names resolved, failed or timed out since the last call."""
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
            self._next_look = now + OFTEN_SECONDS
            for host in [host for host in self._asked if now - self._began.get(host, now) > self._seconds]:
                self._give_up(host, now)
                yield host
            if now - self._last_answer > DOWN_SECONDS:
                for host in list(self._waiting):
                    self._give_up(host, now)
                    yield host
        self._hand_out()

    def close(self) -> None:
        """Threads that wait for DNS end when it answers; nobody waits for them."""
        for _ in range(self._num_threads):
            self._names.put(None)
        with self._wakes:
            os.close(self.wake_descriptor)
            os.close(self._waker)
            self._waker = -1

    def _end(self, host: str, *, is_slow: bool) -> None:
        """Its lookup is over, and says how many DNS can take."""
        del self._asked[host]
        self._waiting.pop(host, None)
        self._num_allowed = (
            max(MIN_LOOKUPS, self._num_allowed // 2) if is_slow else min(MAX_LOOKUPS, self._num_allowed + 1)
        )

    def _give_up(self, host: str, now: float) -> None:
        self._end(host, is_slow=True)
        self._began.pop(host, None)
        self._remember(host, Resolution((), _TOO_SLOW, False, now + OFTEN_SECONDS))

    def _hand_out(self) -> None:
        """Give threads the names that may be looked up now."""
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
        # Under a lock, since after `close` the number of the descriptor may be that of another file.
        with self._wakes:
            if self._waker >= 0:
                try:
                    os.write(self._waker, b"x")
                except BlockingIOError:
                    pass  # full: it is awake

    def _vet(self, addresses: Iterable[str], failure: FetchFailure | None, is_final: bool, now: float) -> Resolution:
        if failure is not None:
            return Resolution((), failure, is_final, now + (UNKNOWN_SECONDS if is_final else OFTEN_SECONDS))
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
        # In bytes: of text, Python would make IDNA once more, with an error of its own for a label of 64 letters.
        found = socket.getaddrinfo(host.encode("ascii"), None, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        is_final = error.errno in _FINAL_ERRORS
        return (), _NOT_FOUND if is_final else _NOT_NOW, is_final
    except (OSError, UnicodeError):
        return (), _NOT_NOW, False
    addresses = dict.fromkeys(str(where[0]) for _, _, _, _, where in found)
    return tuple(addresses), None, True


def parse_entry(entry: str) -> tuple[tuple[str, int], tuple[str, ...]]:
    """((host, port), addresses) of `host:port:address[,address]`.

    Raises:
        ValueError: for an entry that is none.
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
