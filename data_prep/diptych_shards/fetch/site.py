"""Sites and the URLs that wait for them: how many requests a site gets at a time, and when it is left alone."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Iterator

from diptych_shards.fetch.outcome import FetchFailure, FetchReason
from diptych_shards.fetch.permission import Robots
from diptych_shards.fetch.url import Url

MIN_SECONDS_LEFT = 0.05
"""A URL with less time left for transfers is not requested again."""
MAX_WAIT_SECONDS = 600.0
"""How long a URL may wait for pauses of its hosts. Its transfers have their own limit; waits in queues do not count."""
MIN_FAILED_URLS = 3
"""If so many different URLs fail in a row, the site is at fault, and we wait for it. Fewer are bad URLs."""
MAX_FAILED_URLS = 32
"""The same at a site that has many bad URLs, since some of these will follow each other."""
FIRST_PAUSE_SECONDS = 1.0
"""The pause before the first probe of a site; each later pause is twice as long."""
LONGEST_PAUSE_SHARE = 1 / 4
"""The longest pause before a probe, as a share of `patience_seconds`."""
MIN_PROBES = 3
"""How many probes must fail before a site is given up, however long they take; 1 if it has never answered."""
MIN_BACK_OFFS = 5
"""How many 429s in a row, over at least `patience_seconds`, make us give up a site."""
GIVEN_UP_SECONDS = 300.0
"""How long a site stays given up."""
ROBOTS_SECONDS = 86_400.0
"""How long a copy of a robots.txt is used; RFC 9309 allows no more."""
MAX_SITES = 5_000
"""How many sites are remembered, with their robots.txt and their behaviour."""
MAX_ROBOTS_KEPT = 2 * 2**20
"""Characters of all robots.txt in memory. Parsed, they take eighteen times as much."""


class Job:
    """A URL to fetch: one of the caller's, or the robots.txt of a site."""

    __slots__ = (
        "attempt",
        "deadline",
        "failure",
        "paused_before",
        "redirects",
        "robots_of",
        "seconds_left",
        "site",
        "ticket",
        "url",
    )

    def __init__(self, ticket: int, url: Url, seconds: float, robots_of: Site | None = None):
        """seconds: how long it may be in transfer, in all attempts together."""
        self.ticket = ticket
        self.url = url
        self.robots_of = robots_of
        """The site whose robots.txt this is; None for a URL of the caller."""
        self.site: Site | None = None
        """The site where it waits or is in flight."""
        self.seconds_left = seconds
        self.redirects = 0
        self.attempt = 0
        self.failure: FetchFailure | None = None
        """Its last failure, if the site may be at fault. Only its first one counts against the site."""
        self.deadline = math.inf
        """Set when it is first requested: before that it waits for its turn, for however long."""
        self.paused_before = 0.0
        """`Site.paused_seconds` when it was put into the queue."""

    @property
    def has_failed(self) -> bool:
        """Whether an earlier request failed, perhaps through the fault of its site."""
        return self.failure is not None

    def begin(self, now: float) -> None:
        """Note that it is requested now, for the first time or again."""
        self.deadline = min(self.deadline, now + self.seconds_left + MAX_WAIT_SECONDS)

    def has_time(self, now: float) -> bool:
        """Whether it may be requested again."""
        return self.seconds_left > MIN_SECONDS_LEFT and now < self.deadline

    def is_late(self, site: Site, now: float) -> bool:
        """Whether it has waited too long for the pauses of this site, or of several."""
        return now > self.deadline or site.paused_seconds(now) - self.paused_before > MAX_WAIT_SECONDS


class Site:
    """One scheme, host and port: what waits for it, and what is known of it."""

    def __init__(self, origin: str, connections: int, patience_seconds: float):
        """connections: at a time; patience_seconds: how long to wait for the site when it fails."""
        self.origin = origin
        self.robots: Robots | None = None
        self.robots_until = 0.0
        """Until when `robots` is used; 0 if it was never fetched."""
        self.has_answered = False
        """Whether it has ever answered, with any status."""
        self._connections = connections
        self._patience_seconds = patience_seconds
        self._allowed = 1  # requests at a time; 1 until it answers, to keep thousands of URLs from a dead host
        self._failed_urls = 0  # URLs that failed since its last good answer
        self._failing_since = 0.0  # when the request of the first of them started
        self._bad_urls = 0  # how often a URL failed again while others were answered
        self._num_probes = 0  # probes that failed since we started to wait for it
        self._give_up_at = math.inf  # it is given up at the first failure after this time
        self._error_pauses = 0.0  # seconds of pauses because it answered with errors
        self._back_offs = 0
        self._backing_off_since = 0.0
        self._quiet_until = 0.0
        self._pauses = 0.0
        self._given_up: FetchFailure | None = None
        self._given_up_until = 0.0
        self.queue: deque[Job] = deque()
        self.tried: deque[Job] = deque()
        """Jobs that wait again, after a failure that may be the fault of the site."""
        self.clear()

    def clear(self) -> None:
        """Forget its jobs. The frontier maintains the fields below."""
        self.queue.clear()
        self.tried.clear()
        self.in_flight = 0
        self.is_asking_robots = False
        self.is_in_rotation = False
        self.is_resting = False
        """Whether the frontier will wake it after its pause."""

    def can_start(self, now: float) -> bool:
        """Whether one of its waiting jobs may be requested now."""
        return (
            self.has_waiting
            and self.in_flight < self._allowed
            and now >= self._quiet_until
            and not self.is_asking_robots
        )

    @property
    def has_waiting(self) -> bool:
        return bool(self.queue or self.tried)

    def take_next(self) -> Job:
        """Take the waiting job whose turn it is."""
        if not self.queue or (self.tried and not self._failed_urls):
            return self.tried.popleft()
        if self.is_waited_for:
            # Probe with a random one: bad URLs are often neighbours, and say nothing about the site.
            index = random.randrange(len(self.queue))
            job = self.queue[index]
            del self.queue[index]
            return job
        return self.queue.popleft()

    @property
    def is_idle(self) -> bool:
        return not self.has_waiting and not self.in_flight and not self.is_asking_robots

    @property
    def quiet_until(self) -> float:
        return self._quiet_until

    def given_up(self, now: float) -> FetchFailure | None:
        """Why its URLs fail without a request; None if it is not given up."""
        if self._given_up is not None and now >= self._given_up_until:
            self._given_up = None
            self._allowed = 1
        return self._given_up

    @property
    def is_waited_for(self) -> bool:
        """Whether so many URLs failed in a row that the site is at fault. Then URLs probe it, one at a time."""
        return self._failed_urls >= min(MIN_FAILED_URLS + self._bad_urls, MAX_FAILED_URLS)

    def note_answer(self, *, has_failed: bool = False) -> None:
        """Note an answer without an error of the server, and allow one more request at a time.

        has_failed: whether this URL had failed before: then it was right to wait for the site.
        """
        self.has_answered = True
        if has_failed:
            self._error_pauses = 0.0
        self._failed_urls = self._num_probes = self._back_offs = 0
        self._give_up_at = math.inf
        limit = 1 if self.robots is not None and self.robots.has_delay else self._connections
        self._allowed = min(self._allowed + 1, limit)

    def note_silence(self, failure: FetchFailure, started: float, now: float, *, has_failed: bool) -> None:
        """Note that a request got no answer.

        started: when the request started.
        has_failed: whether its URL has failed before, and is counted already.
        """
        if self._failed_urls == 0:
            self._failing_since = started
        self._count(has_failed)
        if not self.is_waited_for or started < self.quiet_until:
            return
        if self._give_up_at == math.inf:
            # If it has answered, the URLs that failed long ago may just have been bad ones.
            since = now if self.has_answered else self._failing_since
            self._give_up_at = since + self._patience_seconds
        min_probes = MIN_PROBES if self.has_answered else 1
        if self._num_probes >= min_probes and now >= self._give_up_at:
            self.give_up(host_given_up(failure), now, GIVEN_UP_SECONDS)
        else:
            self._wait(now)

    def note_error(self, started: float, now: float, *, has_failed: bool) -> None:
        """Note that a request was answered with an error of the server (502, 503 …).

        A site that keeps sending errors is not given up, since it does answer: when the patience is used up, its
        errors count as answers.

        started, has_failed: as in `note_silence`.
        """
        self.has_answered = True
        if self._error_pauses >= self._patience_seconds:
            self.note_answer()
            return
        self._give_up_at = math.inf
        self._count(has_failed)
        if self.is_waited_for and started >= self.quiet_until:
            self._error_pauses += self._wait(now)

    def give_up(self, failure: FetchFailure, now: float, seconds: float) -> None:
        """Let its URLs fail for this many seconds; after that, one URL is tried and decides."""
        self._given_up, self._given_up_until = failure, now + seconds

    def _count(self, has_failed: bool) -> None:
        if not has_failed:
            self._failed_urls += 1
        elif self.has_answered and not self.is_waited_for:
            self._bad_urls += 1

    def _wait(self, now: float) -> float:
        """Start a pause, each time a longer one, and return its seconds."""
        self._allowed = 1
        longest = LONGEST_PAUSE_SHARE * self._patience_seconds
        seconds = min(longest, FIRST_PAUSE_SECONDS * 2.0**self._num_probes) * random.uniform(1.0, 1.25)
        self._num_probes += 1
        self._quiet_until = now + seconds
        self._pauses += seconds
        return seconds

    def learn_robots(self, robots: Robots | None, now: float) -> None:
        """Keep its robots.txt; None if it has none."""
        self.robots = robots
        self.robots_until = now + ROBOTS_SECONDS
        self.note_answer()

    def forget_robots(self) -> None:
        self.robots, self.robots_until = None, 0.0

    def back_off(
        self, failure: FetchFailure, started: float, seconds: float | None, now: float, longest: float
    ) -> None:
        """Pause because the site asked for it; give the site up if that takes too long.

        started: when the request started that it answered so.
        seconds: the pause that it asks for; None if it does not say.
        longest: the longest pause that we wait for.
        """
        if started < self._quiet_until:
            return  # the request was sent before the last pause
        if self._back_offs == 0:
            self._backing_off_since = now
        self._back_offs += 1
        self._allowed = max(1, self._allowed // 2)
        if seconds is None:
            seconds = min(2.0**self._back_offs * random.uniform(0.5, 1.0), longest)
        is_patient = self._back_offs < MIN_BACK_OFFS or now - self._backing_off_since < self._patience_seconds
        if seconds > longest or not is_patient:
            self.give_up(host_given_up(failure), now, max(GIVEN_UP_SECONDS, min(seconds, 3600.0)))
        self._quiet_until = now + min(seconds, longest)
        self._pauses += min(seconds, longest)

    def paused_seconds(self, now: float) -> float:
        """How many seconds of pauses it has had so far."""
        return self._pauses - max(0.0, self._quiet_until - now)


class Sites:
    """Sites by their origin; the least recently used are forgotten."""

    def __init__(self, connections: int, patience_seconds: float):
        """connections: to one site at a time; patience_seconds: how long to wait for a site when it fails."""
        self._connections = connections
        self._patience_seconds = patience_seconds
        self._sites: dict[str, Site] = {}  # in the order of use
        self._with_robots: dict[Site, int] = {}  # in the order of their answers, with the size

    def __iter__(self) -> Iterator[Site]:
        return iter(self._sites.values())

    def at(self, origin: str) -> Site:
        """The site of this origin: the one that is known, or a new one."""
        site = self._sites.pop(origin, None) or Site(origin, self._connections, self._patience_seconds)
        self._sites[origin] = site
        if len(self._sites) > MAX_SITES:
            oldest = next(iter(self._sites))
            if self._sites[oldest].is_idle:
                self._with_robots.pop(self._sites.pop(oldest), None)
            else:
                self._sites[oldest] = self._sites.pop(oldest)
        return site

    def keep_robots(self, site: Site, robots: Robots | None, now: float) -> None:
        """Remember the robots.txt of a site, and forget the oldest others if there is no room for them.

        robots: None if it has no robots.txt.
        """
        site.learn_robots(robots, now)
        self._with_robots.pop(site, None)
        if robots is not None:
            self._with_robots[site] = robots.size
        while sum(self._with_robots.values()) > MAX_ROBOTS_KEPT and len(self._with_robots) > 1:
            oldest = next(iter(self._with_robots))
            del self._with_robots[oldest]
            oldest.forget_robots()


def retry_delay_seconds(attempt: int) -> float:
    """How long to wait after this attempt (from 0); random, so that URLs that failed together return one by one."""
    return float(2**attempt * random.uniform(1.0, 1.5))


def host_given_up(failure: FetchFailure) -> FetchFailure:
    """The failure of all URLs of a site that is given up because of this failure."""
    return FetchFailure(FetchReason.HOST_GIVEN_UP.value, f"host given up: {failure.message}")
