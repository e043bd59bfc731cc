"""Fetch many URLs at once: the main loop.

A URL waits at its site until its turn comes (`frontier`), its host is looked up (`resolver`), it is requested
(`transfer_pool`), and `dispatch` decides what the answer means: it is the outcome, or the URL waits again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from diptych_shards.fetch.address_gate import AddressGate
from diptych_shards.fetch.answer import Headers, Wanted
from diptych_shards.fetch.curl_loop import CurlLoop
from diptych_shards.fetch.dispatch import Dispatch
from diptych_shards.fetch.frontier import Frontier
from diptych_shards.fetch.options import FetchOptions
from diptych_shards.fetch.outcome import Fetched, FetchFailure, FetchReason, UrlError, body_bytes
from diptych_shards.fetch.permission import MAX_ROBOTS_BYTES
from diptych_shards.fetch.resolver import CHECK_SECONDS, Resolver
from diptych_shards.fetch.site import Job, Sites
from diptych_shards.fetch.transfer import BodyMemory, Limits
from diptych_shards.fetch.transfer_pool import TransferPool
from diptych_shards.fetch.url import parse_url

__all__ = ["FetchCounters", "FetchFailure", "FetchOptions", "FetchReason", "Fetched", "Fetcher"]

HEADER_SHARE = 1 / 2
"""The share of `timeout_seconds` that may pass from the start of a request to the first byte of the body."""
WINDOW_SHARE = 1 / 6
"""The share of `timeout_seconds` over which the minimum throughput is measured."""
LONGEST_ABSENCE_SECONDS = 0.25
"""If the caller works longer on an outcome, all deadlines move by the excess: the servers are not to blame."""
IDLE_SECONDS = 0.5
"""The shortest time between calls of `on_idle`, and the longest wait for an event: in all, about a call a second."""
LATE_SECONDS = 1.0
"""How often to look for URLs that have waited too long."""
TURN_SECONDS = 0.002
"""How long to hand out outcomes before looking at the network again."""

_END: Any = object()


@dataclass
class FetchCounters:
    """Totals since the fetcher was made."""

    requests: int
    connections: int
    wire_bytes: int
    """Bytes received: headers and bodies, before unpacking."""


class Fetcher:
    """Fetches many URLs at once. It keeps its connections, and what it learns about sites, until it is closed.

    Use it as a context manager, or call `close`.
    """

    def __init__(
        self, options: FetchOptions, *, resolve: Sequence[str] = (), on_idle: Callable[[], None] | None = None
    ):
        """Prepare to fetch; nothing is requested yet.

        resolve: entries `host:port:address` that are used in place of DNS; their addresses must be allowed too.
        on_idle: called about once a second during `fetch`, even while no outcome arrives.

        Raises:
            ValueError: an entry, a blocked domain or the `ca_file` is invalid.
        """
        options.check_certificates()  # again: the options may have been made on another machine
        self.on_idle = on_idle
        self._options = options
        self._memory = BodyMemory()
        sites = Sites(options.per_host, options.patience_seconds)
        self._frontier = Frontier(options, sites)
        self._dispatch = Dispatch(options, sites, self._frontier, self._memory)
        gate = AddressGate(options.allow_networks)
        self._resolver = Resolver(gate, options.connect_timeout_seconds, resolve)
        self._loop = CurlLoop(options.in_flight, self._resolver.wake_descriptor)
        self._pool = TransferPool(gate, _limits(options), options.user_agent, self._memory, self._loop)
        self._picture = Wanted(self._dispatch.wants_body, options.max_bytes)
        self._robots = Wanted(_is_success, 2 * MAX_ROBOTS_BYTES, takes_part=True)
        self._next_idle = self._next_look = 0.0
        self._is_fetching = False

    @property
    def counters(self) -> FetchCounters:
        return FetchCounters(self._pool.requests, self._pool.connections, self._pool.wire_bytes)

    def fetch(self, urls: Iterable[tuple[int, str] | None]) -> Iterator[tuple[int, Fetched | FetchFailure]]:
        """Yield each ticket with the outcome of its URL, as soon as it is known.

        If the generator is closed before its end, the transfers in flight are aborted.

        urls: pairs of a ticket and a URL, read as there is room for them. None means that no URL is ready yet; the
            iterator is asked again after the next events.
        """
        if self._is_fetching:
            raise RuntimeError("this Fetcher is fetching already; end that first")
        self._is_fetching = True
        try:
            yield from self._fetch(iter(urls))
        finally:
            self._pool.abandon()
            self._dispatch.clear()
            self._frontier.clear()
            self._is_fetching = False

    def close(self) -> None:
        self._pool.close()
        self._loop.close()
        self._resolver.close()

    def __enter__(self) -> Fetcher:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _fetch(self, source: Iterator[tuple[int, str] | None]) -> Iterator[tuple[int, Fetched | FetchFailure]]:
        outcomes = self._dispatch.outcomes
        is_exhausted = False
        last_turn = 0.0
        while True:
            is_exhausted = self._fill(source, is_exhausted)
            if not outcomes:
                if is_exhausted and not self._pool and self._frontier.is_empty:
                    return
                last_turn = self._turn(IDLE_SECONDS)
            elif time.monotonic() - last_turn > TURN_SECONDS:
                last_turn = self._turn(0.0)
            if outcomes:
                ticket, outcome = outcomes.popleft()
                held = body_bytes(outcome)
                left = time.monotonic()
                yield ticket, outcome
                del outcome
                self._memory.held_bytes -= held
                absence = time.monotonic() - left - LONGEST_ABSENCE_SECONDS
                if absence > 0:
                    self._pool.excuse(absence)

    def _fill(self, source: Iterator[tuple[int, str] | None], is_exhausted: bool) -> bool:
        """Start all jobs that may start now; return whether the source has ended."""
        while len(self._pool) + len(self._dispatch.outcomes) < self._options.in_flight and not self._memory.is_full:
            now = time.monotonic()
            job = self._frontier.next(now)
            if job is not None:
                self._start(job, now)
            elif is_exhausted or not self._has_room_to_wait:
                break
            else:
                item = next(source, _END)
                if item is _END:
                    is_exhausted = True
                elif item is None:
                    break
                else:
                    ticket, text = item
                    self._accept(ticket, text, now)
        return is_exhausted

    @property
    def _has_room_to_wait(self) -> bool:
        # A host that is being looked up counts once, however many URLs wait for it: others must not wait for it too.
        return self._frontier.num_at_sites + self._frontier.num_lookups < self._options.look_ahead

    def _accept(self, ticket: int, text: str, now: float) -> None:
        try:
            url = parse_url(text)
        except UrlError as error:
            self._dispatch.outcomes.append((ticket, error.failure))
            return
        self._dispatch.admit(Job(ticket, url, self._options.timeout_seconds), now)

    def _start(self, job: Job, now: float) -> None:
        """Start a job if robots.txt allows it; a host that is not known yet is looked up first."""
        if not self._dispatch.allows(job, now):
            return
        url = job.url
        addresses: tuple[str, ...] = ()
        if not url.is_address:
            resolution = self._resolver.known(url.host, url.port, now)
            if resolution is None:
                self._frontier.add_for_lookup(job)
                self._resolver.ask(url.host)
                return
            if resolution.failure is not None:
                self._dispatch.take_failed_lookup(job, resolution.failure, now, is_final=resolution.is_final)
                return
            addresses = resolution.addresses
        wanted = self._picture if job.robots_of is None else self._robots
        self._pool.start(url, job, wanted, addresses=addresses, seconds=job.seconds_left, now=now)

    def _turn(self, seconds: float) -> float:
        """Wait at most this many seconds for events, handle them, and return the time."""
        if self._frontier.num_lookups:
            seconds = min(seconds, CHECK_SECONDS)
        ended = self._pool.wait(min(seconds, self._frontier.next_due - time.monotonic()))
        now = self._loop.now
        for transfer in ended:
            self._dispatch.take_answer(transfer.tag, transfer, now)
            self._pool.give_back(transfer)
        if self._frontier.num_lookups or self._loop.was_woken:
            for host in self._resolver.answered(now):
                self._take_lookup(host, now)
        for job in self._frontier.take_due(now):
            self._dispatch.admit(job, now)
        if now >= self._next_look:
            self._next_look = now + LATE_SECONDS
            self._dispatch.fail_late_jobs(now)
        if self.on_idle is not None and now >= self._next_idle:
            self._next_idle = now + IDLE_SECONDS
            self.on_idle()
        return now

    def _take_lookup(self, host: str, now: float) -> None:
        """Continue with the jobs that waited for the lookup of this host."""
        for job in self._frontier.take_looked_up(host):
            resolution = self._resolver.known(host, job.url.port, now)
            if resolution is not None and resolution.failure is not None:
                # Fail now: a temporary failure is forgotten before their turn comes.
                self._dispatch.take_failed_lookup(job, resolution.failure, now, is_final=resolution.is_final)
            else:
                self._frontier.add_urgent(job)


def _limits(options: FetchOptions) -> Limits:
    return Limits(
        connect_seconds=options.connect_timeout_seconds,
        header_seconds=options.timeout_seconds * HEADER_SHARE,
        window_seconds=options.timeout_seconds * WINDOW_SHARE,
        min_bytes_per_second=options.min_bytes_per_second,
        ca_file=options.ca_file,
    )


def _is_success(status: int, headers: Headers) -> bool:
    return status == 200
