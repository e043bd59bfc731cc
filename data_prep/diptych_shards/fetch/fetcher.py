"""URLs in, bodies out: what to ask for next, and what an answer means.

A URL waits at its site until the site may be asked; sites take turns. A redirect is a new URL at another site, looked
at like the first. What is learnt of a site (robots.txt, that it is down, that it wants a pause) holds for all its URLs.
"""

from __future__ import annotations

import heapq
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from diptych_shards.fetch.address import AddressGate
from diptych_shards.fetch.answer import (
    BLOCKED,
    DISALLOWED,
    TOO_MANY_REDIRECTS,
    WAITED_TOO_LONG,
    asked_pause,
    is_worth_repeating,
    means_no_robots,
    read_answer,
    read_robots_answer,
    robots_verdict,
)
from diptych_shards.fetch.opt_out import forbids, product_token
from diptych_shards.fetch.options import FetchOptions
from diptych_shards.fetch.outcome import Fetched, FetchFailure, FetchReason, UrlError
from diptych_shards.fetch.politeness import GIVEN_UP_SECONDS, ROBOTS_SECONDS, Site, retry_delay_seconds
from diptych_shards.fetch.resolver import OFTEN_SECONDS, Resolution, Resolver
from diptych_shards.fetch.robots import MAX_BYTES as MAX_ROBOTS_BYTES
from diptych_shards.fetch.robots import Robots, decode_robots
from diptych_shards.fetch.transfer import MAX_HELD_BYTES, Headers, Limits, Transfer, Transfers
from diptych_shards.fetch.url import Url, is_within, normalise_domain, parse_url

__all__ = ["FetchCounters", "FetchFailure", "FetchOptions", "FetchReason", "Fetched", "Fetcher"]

MAX_SITES = 5_000
"""Whose robots.txt and manners are remembered."""
MAX_ROBOTS_KEPT = 2 * 2**20
"""Characters of robots.txt in all; parsed, they take eighteen times as much."""
HEADER_SHARE = 1 / 2
"""Of the time a URL has, from the start of a request to the first byte of a body."""
WINDOW_SHARE = 1 / 6
"""Of the time a URL has: over so long is the minimum throughput measured."""
LEAST_SECONDS = 0.05
"""With less left, a URL is not asked for again."""
MAX_WAIT_SECONDS = 600.0
"""For the pauses that hosts ask for, beside the time a URL has; in queues behind other URLs it may wait longer."""
LONGEST_ABSENCE_SECONDS = 0.25
"""A caller that works longer on an outcome stops the clocks of what is in flight: the servers cannot help it."""
IDLE_SECONDS = 0.5
"""So often `on_idle` is called; so long, at most, one waits for something to happen: together, once a second."""

_END: Any = object()


@dataclass
class FetchCounters:
    """What was done so far."""

    requests: int
    connections: int
    wire_bytes: int
    """Received: headers and bodies, before unpacking."""


class _Job:
    """A URL on its way, or the robots.txt of a site."""

    __slots__ = (
        "attempt",
        "deadline",
        "for_site",
        "paused_before",
        "redirects",
        "seconds_left",
        "site",
        "ticket",
        "url",
    )

    def __init__(self, ticket: int, url: Url, seconds: float, for_site: Site[_Job] | None = None):
        self.ticket = ticket
        self.url = url
        self.for_site = for_site
        self.site: Site[_Job] | None = None
        self.seconds_left = seconds
        self.redirects = 0
        self.attempt = 0
        self.deadline = math.inf
        """Once it has been asked for: then it waits for nothing but pauses, names and redirects."""
        self.paused_before = 0.0
        """The pauses of its site until it came."""

    def is_late(self, site: Site[_Job], now: float) -> bool:
        """Whether it has waited at this site, or at several, for longer than anybody would."""
        return now > self.deadline or site.paused_seconds(now) - self.paused_before > MAX_WAIT_SECONDS


class Fetcher:
    """Fetches URLs, many at once; connections and what is known of sites live as long as it does.

    Use as a context manager, or call `close`.
    """

    def __init__(
        self, options: FetchOptions, *, resolve: Sequence[str] = (), on_idle: Callable[[], None] | None = None
    ):
        """resolve: `host:port:address` entries that are asked before DNS; the gate looks at their addresses too.

        on_idle: called about once a second during `fetch`, also while nothing comes of it.

        Raises:
            ValueError: for an entry, a blocked domain or a `ca_file` that is none.
        """
        self.on_idle = on_idle
        self._next_idle = self._next_look = 0.0
        self._options = options
        self._blocked = frozenset(map(normalise_domain, options.blocked_domains))
        if options.ca_file is not None and not Path(options.ca_file).is_file():
            raise ValueError(f"ca_file {options.ca_file!r} is not a file of certificates")
        self._agent = product_token(options.user_agent)
        self._directives = frozenset(directive.lower() for directive in options.opt_out_directives)
        limits = Limits(
            connect_seconds=options.connect_timeout_seconds,
            header_seconds=options.timeout_seconds * HEADER_SHARE,
            window_seconds=options.timeout_seconds * WINDOW_SHARE,
            min_bytes_per_second=options.min_bytes_per_second,
            ca_file=options.ca_file,
        )
        gate = AddressGate(options.allow_networks)
        self._resolver = Resolver(gate, options.connect_timeout_seconds, resolve)
        wake = self._resolver.wake_descriptor
        self._transfers = Transfers(gate, limits, options.user_agent, options.in_flight, wake)
        self._sites: dict[str, Site[_Job]] = {}
        self._with_robots: dict[Site[_Job], int] = {}  # in the order of their answers, with the size
        self._is_fetching = False
        self._forget()

    @property
    def counters(self) -> FetchCounters:
        transfers = self._transfers
        return FetchCounters(transfers.requests, transfers.connections, transfers.wire_bytes)

    def fetch(self, urls: Iterable[tuple[int, str] | None]) -> Iterator[tuple[int, Fetched | FetchFailure]]:
        """Each ticket with what became of its URL, as soon as it is known.

        URLs are taken from the iterable as there is room for them; None says that there is none until something has
        happened. What is in flight is broken off when the generator is closed before its end.
        """
        if self._is_fetching:
            raise RuntimeError("this Fetcher is fetching already; end that first")
        self._is_fetching = True
        try:
            yield from self._fetch(iter(urls))
        finally:
            self._transfers.abandon()
            self._transfers.release(sum(_held(outcome) for _, outcome in self._outcomes))
            for site in self._sites.values():
                site.queue.clear()
                site.in_flight = 0
                site.is_in_rotation = site.is_resting = site.is_asking_robots = False
            self._forget()
            self._is_fetching = False

    def close(self) -> None:
        self._transfers.close()
        self._resolver.close()

    def __enter__(self) -> Fetcher:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _forget(self) -> None:
        """Nothing is under way."""
        self._outcomes: deque[tuple[int, Fetched | FetchFailure]] = deque()
        self._rotation: deque[Site[_Job]] = deque()  # sites that may be asked, each once
        self._urgent: deque[_Job] = deque()  # robots.txt, and whose host was looked up
        self._nameless: dict[str, list[_Job]] = {}  # by host, while it is looked up
        self._waiting = 0  # jobs in queues of sites
        self._later: list[tuple[float, int, Site[_Job] | _Job]] = []  # heap: sites after a pause, jobs to be repeated
        self._order = count()

    def _fetch(self, source: Iterator[tuple[int, str] | None]) -> Iterator[tuple[int, Fetched | FetchFailure]]:
        is_exhausted = False
        last_turn = 0.0
        while True:
            is_exhausted = self._fill(source, is_exhausted)
            if not self._outcomes:
                if is_exhausted and not self._is_busy:
                    return
                last_turn = self._turn(IDLE_SECONDS)
            elif self._now() - last_turn > 0.002:
                last_turn = self._turn(0.0)
            if self._outcomes:
                ticket, outcome = self._outcomes.popleft()
                held = _held(outcome)
                left = time.monotonic()
                yield ticket, outcome
                del outcome
                self._transfers.release(held)
                absence = time.monotonic() - left - LONGEST_ABSENCE_SECONDS
                if absence > 0:
                    self._transfers.excuse(absence)

    @property
    def _is_busy(self) -> bool:
        return bool(len(self._transfers) or self._waiting or self._later or self._urgent or self._nameless)

    def _now(self) -> float:
        return time.monotonic()

    def _turn(self, seconds: float) -> float:
        """Let things happen for at most so long; the time it is then."""
        if self._later:
            seconds = min(seconds, self._later[0][0] - self._now())
        if self._nameless:
            seconds = min(seconds, OFTEN_SECONDS)
        for transfer in self._transfers.wait(seconds):
            self._take(transfer)
        now = self._transfers.now
        if self._nameless or self._transfers.was_woken:
            for host in self._resolver.answered(now):
                self._take_lookup(self._nameless.pop(host, []), now)
        while self._later and self._later[0][0] <= now:
            due = heapq.heappop(self._later)[2]
            if isinstance(due, Site):
                due.is_resting = False
                self._wake(due)
            else:
                self._admit(due)
        if now >= self._next_look:
            self._next_look = now + 1.0
            self._fail_late_jobs(now)
        if self.on_idle is not None and now >= self._next_idle:
            self._next_idle = now + IDLE_SECONDS
            self.on_idle()
        return now

    def _fill(self, source: Iterator[tuple[int, str] | None], is_exhausted: bool) -> bool:
        """Start what may be started; whether the source has ended."""
        transfers = self._transfers
        while len(transfers) + len(self._outcomes) < self._options.in_flight and transfers.held_bytes < MAX_HELD_BYTES:
            if self._urgent:
                self._start(self._urgent.popleft())
            elif self._rotation:
                self._start_next_of(self._rotation.popleft())
            elif not is_exhausted and self._has_room_to_wait:
                item = next(source, _END)
                if item is _END:
                    is_exhausted = True
                elif item is None:
                    break
                else:
                    self._accept(*item)
            else:
                break
        return is_exhausted

    @property
    def _has_room_to_wait(self) -> bool:
        # Names whose lookup takes long keep no place from the rows of other hosts, as busy hosts do not.
        return self._waiting + self._resolver.num_asked < self._options.look_ahead

    def _accept(self, ticket: int, text: str) -> None:
        try:
            url = parse_url(text)
        except UrlError as error:
            self._outcomes.append((ticket, error.failure))
            return
        self._admit(_Job(ticket, url, self._options.timeout_seconds))

    def _admit(self, job: _Job) -> None:
        """Let a URL wait at its site, or refuse it."""
        url = job.url
        if self._blocked and is_within(url.host, self._blocked):
            self._conclude(job, BLOCKED)
            return
        if job.for_site is not None:
            self._urgent.append(job)
            return
        site = self._site(url.origin)
        given_up = site.given_up(self._now())
        if given_up is not None:
            self._outcomes.append((job.ticket, given_up))
            return
        job.site = site
        job.paused_before = site.paused_seconds(self._now())
        # What was begun is ended first: a redirect waits behind nobody.
        if job.redirects or job.attempt:
            site.queue.appendleft(job)
        else:
            site.queue.append(job)
        self._waiting += 1
        self._wake(site)

    def _site(self, origin: str) -> Site[_Job]:
        site = self._sites.pop(origin, None) or Site(origin, self._options.per_host)
        self._sites[origin] = site  # at the end: the order is that of use
        if len(self._sites) > MAX_SITES:
            oldest = next(iter(self._sites))
            if self._sites[oldest].is_idle:
                self._with_robots.pop(self._sites.pop(oldest), None)
            else:
                self._sites[oldest] = self._sites.pop(oldest)
        return site

    def _wake(self, site: Site[_Job]) -> None:
        if site.is_in_rotation or site.is_resting:
            return
        now = self._now()
        if site.can_start(now):
            site.is_in_rotation = True
            self._rotation.append(site)
        elif site.queue and now < site.quiet_until:
            site.is_resting = True
            heapq.heappush(self._later, (site.quiet_until, next(self._order), site))

    def _start_next_of(self, site: Site[_Job]) -> None:
        site.is_in_rotation = False
        now = self._now()
        if not site.can_start(now):
            self._wake(site)
            return
        if self._options.respect_robots_txt and now >= site.robots_until:
            site.is_asking_robots = True
            url = parse_url(site.origin + "/robots.txt")
            self._urgent.append(_Job(-1, url, self._options.timeout_seconds, for_site=site))
            return
        job = site.queue.popleft()
        self._waiting -= 1
        if site.robots is not None and not site.robots.allows(str(job.url)):
            self._outcomes.append((job.ticket, DISALLOWED))
        else:
            site.in_flight += 1
            job.deadline = min(job.deadline, now + self._options.timeout_seconds + MAX_WAIT_SECONDS)
            self._start(job)
        self._wake(site)

    def _start(self, job: _Job) -> None:
        """Ask for it, as soon as its host is looked up."""
        url = job.url
        addresses: tuple[str, ...] = ()
        if not url.is_address:
            now = self._now()
            resolution = self._resolver.known(url.host, url.port, now)
            if resolution is None:
                self._nameless.setdefault(url.host, []).append(job)
                self._resolver.ask(url.host)
                return
            if resolution.failure is not None:
                self._take_failed_lookup(job, resolution, resolution.failure, now)
                return
            addresses = resolution.addresses
        is_robots = job.for_site is not None
        self._transfers.start(
            url,
            job,
            addresses=addresses,
            seconds=job.seconds_left,
            max_bytes=2 * MAX_ROBOTS_BYTES if is_robots else self._options.max_bytes,
            takes_part=is_robots,
            keeps_body=_is_success if is_robots else self._is_wanted,
        )

    def _take_lookup(self, jobs: list[_Job], now: float) -> None:
        """Their host was looked up."""
        for job in jobs:
            resolution = self._resolver.known(job.url.host, job.url.port, now)
            if resolution is not None and resolution.failure is not None:
                # At once: a failure that may pass is not remembered until it is their turn.
                self._take_failed_lookup(job, resolution, resolution.failure, now)
            else:
                self._urgent.append(job)

    def _take_failed_lookup(self, job: _Job, resolution: Resolution, failure: FetchFailure, now: float) -> None:
        site = job.site
        if site is not None:
            site.in_flight -= 1
            if resolution.is_final:
                site.give_up(failure, now, GIVEN_UP_SECONDS)
            else:
                site.note_failure(failure, now)
            self._fail_if_given_up(site, now)
        if resolution.is_final:
            self._conclude(job, failure)
        else:
            self._settle(job, failure, now, 0.0)
        if site is not None:
            self._wake(site)

    def _is_wanted(self, status: int, headers: Headers) -> bool:
        return status == 200 and not self._is_opted_out(headers)

    def _is_opted_out(self, headers: Headers | None) -> bool:
        return (
            headers is not None
            and bool(headers.robots_tags)
            and forbids(headers.robots_tags, self._agent, self._directives)
        )

    def _take(self, transfer: Transfer) -> None:
        """Decide what an ended transfer means."""
        now = self._transfers.now
        job: _Job = transfer.tag
        job.seconds_left -= now - transfer.started
        site = job.site
        if site is not None:
            site.in_flight -= 1
        outcome = self._outcome(transfer, job)
        pause = asked_pause(transfer) if site is None else None  # a site keeps its pauses itself
        held = sum(map(len, transfer.chunks))
        self._transfers.release(held - (_held(outcome) if job.for_site is None else 0))
        if site is not None:
            self._learn(site, transfer, outcome, now)
        self._transfers.give_back(transfer)
        self._settle(job, outcome, now, pause.seconds if pause is not None and pause.seconds is not None else 0.0)
        if site is not None:
            self._wake(site)

    def _settle(self, job: _Job, outcome: Fetched | FetchFailure | Url, now: float, pause: float) -> None:
        """Repeat it, follow it, or be done with it."""
        if isinstance(outcome, FetchFailure) and self._is_repeated(job, outcome, now, pause):
            when = now + max(retry_delay_seconds(job.attempt), pause)
            job.attempt += 1
            heapq.heappush(self._later, (when, next(self._order), job))
        elif isinstance(outcome, Url):
            job.url = outcome
            job.redirects += 1
            self._admit(job)
        else:
            self._conclude(job, outcome)

    def _conclude(self, job: _Job, outcome: Fetched | FetchFailure) -> None:
        if job.for_site is not None:
            self._take_robots(job, job.for_site, outcome, self._now())
        else:
            self._outcomes.append((job.ticket, outcome))

    def _is_repeated(self, job: _Job, failure: FetchFailure, now: float, pause: float) -> bool:
        return (
            is_worth_repeating(failure)
            and job.attempt < self._options.retries
            and job.seconds_left > LEAST_SECONDS
            and now < job.deadline
            and pause <= self._options.max_retry_after_seconds
        )

    def _outcome(self, transfer: Transfer, job: _Job) -> Fetched | FetchFailure | Url:
        if job.for_site is not None:
            outcome = read_robots_answer(transfer, job.url)
        else:
            outcome = read_answer(transfer, job.url, is_opted_out=self._is_opted_out(transfer.headers))
        if isinstance(outcome, Url) and job.redirects >= self._options.max_redirects:
            return TOO_MANY_REDIRECTS
        return outcome

    def _learn(self, site: Site[_Job], transfer: Transfer, outcome: object, now: float) -> None:
        """What an answer, or that there was none, says of the site."""
        pause = asked_pause(transfer)
        if pause is not None:
            longest = self._options.max_retry_after_seconds
            site.back_off(pause.failure, transfer.started, pause.seconds, now, longest)
            self._fail_if_given_up(site, now)
        elif transfer.status and transfer.reason is None:
            site.note_answer()
        elif isinstance(outcome, FetchFailure):
            if outcome.reason == FetchReason.address_not_public.value:
                site.give_up(outcome, now, GIVEN_UP_SECONDS)
            else:
                site.note_failure(outcome, now)
            self._fail_if_given_up(site, now)

    def _fail_if_given_up(self, site: Site[_Job], now: float) -> None:
        given_up = site.given_up(now)
        if given_up is None:
            return
        self._waiting -= len(site.queue)
        self._outcomes.extend((job.ticket, given_up) for job in site.queue)
        site.queue.clear()

    def _fail_late_jobs(self, now: float) -> None:
        for site in self._sites.values():
            late = [job for job in site.queue if job.is_late(site, now)]
            if late:
                self._waiting -= len(late)
                self._outcomes.extend((job.ticket, WAITED_TOO_LONG) for job in late)
                kept = [job for job in site.queue if not job.is_late(site, now)]
                site.queue.clear()
                site.queue.extend(kept)

    def _take_robots(self, job: _Job, site: Site[_Job], outcome: Fetched | FetchFailure, now: float) -> None:
        site.is_asking_robots = False
        site.robots_until = now + ROBOTS_SECONDS
        if isinstance(outcome, Fetched):
            self._keep_robots(site, Robots(decode_robots(outcome.data), self._agent))
            site.note_answer()
        elif means_no_robots(outcome):
            site.robots = None
            site.note_answer()
        else:
            site.robots_until = 0.0
            verdict = robots_verdict(outcome, was_redirected=job.redirects > 0)
            site.give_up(verdict, now, GIVEN_UP_SECONDS)
            self._fail_if_given_up(site, now)
        self._wake(site)

    def _keep_robots(self, site: Site[_Job], robots: Robots) -> None:
        site.robots = robots
        self._with_robots.pop(site, None)
        self._with_robots[site] = robots.size
        while sum(self._with_robots.values()) > MAX_ROBOTS_KEPT and len(self._with_robots) > 1:
            oldest = next(iter(self._with_robots))
            del self._with_robots[oldest]
            oldest.robots, oldest.robots_until = None, 0.0


def _is_success(status: int, headers: Headers) -> bool:
    return status == 200


def _held(outcome: Any) -> int:
    return len(outcome.data) if isinstance(outcome, Fetched) else 0
