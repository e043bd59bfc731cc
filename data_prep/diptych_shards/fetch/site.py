"""Sites and the URLs that wait for them: how much a site is asked for at a time, and when it is left alone."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Iterator

from diptych_shards.fetch.outcome import FetchFailure, FetchReason
from diptych_shards.fetch.permission import Robots
from diptych_shards.fetch.url import Url

LEAST_SECONDS = 0.05
"""With less left, a URL is not asked for again."""
MAX_WAIT_SECONDS = 600.0
"""The longest a URL waits in pauses that hosts ask for, in addition to its own time; waits in queues do not count."""
URLS_IN_VAIN = 3
"""Different ones, one after the other: then the fault is the site's, and it is waited for. Fewer are bad URLs."""
MAX_URLS_IN_VAIN = 32
"""At a site of which many URLs proved to be bad, so that some will follow each other."""
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SHARE = 1 / 4
"""Of the patience."""
LEAST_PROBES = 3
"""Before a site that has answered once is given up, however long each of them takes; one that never has needs one."""
BACK_OFFS = 5
"""In a row, and for as long as the patience lasts, before a site that keeps sending 429 is given up."""
GIVEN_UP_SECONDS = 300.0
ROBOTS_SECONDS = 86_400.0
"""RFC 9309: no copy of robots.txt is used longer."""
MAX_SITES = 5_000
"""Whose robots.txt and manners are remembered."""
MAX_ROBOTS_KEPT = 2 * 2**20
"""Characters of robots.txt in all; parsed, they take eighteen times as much."""


class Job:
    """A URL of the caller's, or the robots.txt of a site."""

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
        """seconds: for which it may be in transfer."""
        self.ticket = ticket
        self.url = url
        self.robots_of = robots_of
        """The site whose robots.txt this is; None for a URL of the caller."""
        self.site: Site | None = None
        """The site where it waits or is requested."""
        self.seconds_left = seconds
        self.redirects = 0
        self.attempt = 0
        self.failure: FetchFailure | None = None
        """Its last failure, if that may be its site's fault; only the first counts against the site."""
        self.deadline = math.inf
        """Set when it is first requested; from then on it waits only for pauses, names and redirects."""
        self.paused_before = 0.0
        """The pauses of its site until it came."""

    @property
    def was_in_vain(self) -> bool:
        """Whether it was asked for, and may have failed by the fault of its site."""
        return self.failure is not None

    def begin(self, now: float) -> None:
        """It is asked for, for the first time or again."""
        self.deadline = min(self.deadline, now + self.seconds_left + MAX_WAIT_SECONDS)

    def has_time(self, now: float) -> bool:
        """Whether it may be asked for again."""
        return self.seconds_left > LEAST_SECONDS and now < self.deadline

    def is_late(self, site: Site, now: float) -> bool:
        """Whether it has waited at this site, or at several, for longer than anybody would."""
        return now > self.deadline or site.paused_seconds(now) - self.paused_before > MAX_WAIT_SECONDS


class Site:
    """One scheme, host and port: what waits for it, and what is known of it."""

    def __init__(self, origin: str, connections: int, patience_seconds: float):
        """connections: at a time; patience_seconds: for which it is waited for when it fails."""
        self.origin = origin
        self.robots: Robots | None = None
        self.robots_until = 0.0
        """Until when `robots` is used; before the first time, 0."""
        self.has_answered = False
        """Once, at least, whatever it said."""
        self._connections = connections
        self._patience_seconds = patience_seconds
        self._allowed = 1  # until it has answered: ten thousand URLs do not knock at a dead host together
        self._urls_in_vain = 0  # that failed since its last good answer
        self._in_vain_since = 0.0  # when the first of them was started
        self._bad_urls = 0  # that failed again while others were answered, counted once for each time
        self._num_probes = 0  # that failed since it is waited for
        self._give_up_at = math.inf  # the next failure from then on is the last
        self._error_pauses = 0.0  # seconds for which it was waited for because it answered with errors
        self._back_offs = 0
        self._backing_off_since = 0.0
        self._quiet_until = 0.0
        self._pauses = 0.0
        self._given_up: FetchFailure | None = None
        self._given_up_until = 0.0
        self.queue: deque[Job] = deque()
        self.tried: deque[Job] = deque()
        """What failed before for what may be the site's fault, and waits too."""
        self.clear()

    def clear(self) -> None:
        """Nothing waits for it, and nothing is in flight: what follows is kept by the frontier."""
        self.queue.clear()
        self.tried.clear()
        self.in_flight = 0
        self.is_asking_robots = False
        self.is_in_rotation = False
        self.is_resting = False
        """It will be woken when it may be asked again."""

    def can_start(self, now: float) -> bool:
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
        """Whose turn it is, of those that wait."""
        if not self.queue or (self.tried and not self._urls_in_vain):
            return self.tried.popleft()
        if self.is_waited_for:
            # Anywhere: bad URLs are neighbours, and say nothing of the site.
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
        """Why its URLs fail without being asked for; None while they are worth a try."""
        if self._given_up is not None and now >= self._given_up_until:
            self._given_up = None
            self._allowed = 1
        return self._given_up

    @property
    def is_waited_for(self) -> bool:
        """Whether so many URLs failed in a row that none of them is to blame; one after another probes it."""
        return self._urls_in_vain >= min(URLS_IN_VAIN + self._bad_urls, MAX_URLS_IN_VAIN)

    def note_answer(self, *, was_in_vain: bool = False) -> None:
        """It answered as sites do, whatever it said: one connection more.

        was_in_vain: this URL failed before, so that it was worth while to wait for the site.
        """
        self.has_answered = True
        if was_in_vain:
            self._error_pauses = 0.0
        self._urls_in_vain = self._num_probes = self._back_offs = 0
        self._give_up_at = math.inf
        limit = 1 if self.robots is not None and self.robots.has_delay else self._connections
        self._allowed = min(self._allowed + 1, limit)

    def note_silence(self, failure: FetchFailure, started: float, now: float, *, is_counted: bool) -> None:
        """It gave no answer to what was started then; is_counted: for a URL that failed before."""
        if self._urls_in_vain == 0:
            self._in_vain_since = started
        self._count(is_counted)
        if not self.is_waited_for or started < self.quiet_until:
            return
        if self._give_up_at == math.inf:
            # Of one that has answered, URLs may have failed long ago that were bad by themselves.
            since = now if self.has_answered else self._in_vain_since
            self._give_up_at = since + self._patience_seconds
        least_probes = LEAST_PROBES if self.has_answered else 1
        if self._num_probes >= least_probes and now >= self._give_up_at:
            self.give_up(host_given_up(failure), now, GIVEN_UP_SECONDS)
        else:
            self._wait(now)

    def note_error(self, started: float, now: float, *, is_counted: bool) -> None:
        """It says that it is out of order (502, 503 …); is_counted: to a URL that failed before.

        A site that goes on saying so is not given up, since it answers: when the patience is spent, its errors are
        taken for answers.
        """
        self.has_answered = True
        if self._error_pauses >= self._patience_seconds:
            self.note_answer()
            return
        self._give_up_at = math.inf
        self._count(is_counted)
        if self.is_waited_for and started >= self.quiet_until:
            self._error_pauses += self._wait(now)

    def give_up(self, failure: FetchFailure, now: float, seconds: float) -> None:
        """From now on its URLs fail; one is tried when the time is over, and decides."""
        self._given_up, self._given_up_until = failure, now + seconds

    def _count(self, is_counted: bool) -> None:
        if not is_counted:
            self._urls_in_vain += 1
        elif self.has_answered and not self.is_waited_for:
            self._bad_urls += 1

    def _wait(self, now: float) -> float:
        """Leave it alone, each time for longer; for how many seconds."""
        self._allowed = 1
        longest = LONGEST_PAUSE_SHARE * self._patience_seconds
        seconds = min(longest, FIRST_PAUSE_SECONDS * 2.0**self._num_probes) * random.uniform(1.0, 1.25)
        self._num_probes += 1
        self._quiet_until = now + seconds
        self._pauses += seconds
        return seconds

    def learn_robots(self, robots: Robots | None, now: float) -> None:
        """What its robots.txt says; None if it has none."""
        self.robots = robots
        self.robots_until = now + ROBOTS_SECONDS
        self.note_answer()

    def forget_robots(self) -> None:
        self.robots, self.robots_until = None, 0.0

    def back_off(
        self, failure: FetchFailure, started: float, seconds: float | None, now: float, longest: float
    ) -> None:
        """It asked for a pause, in answer to what was started then.

        seconds: as it says; longest: a pause that is not waited for: its URLs fail for so long.
        """
        if started < self._quiet_until:
            return  # asked before the last pause began
        if self._back_offs == 0:
            self._backing_off_since = now
        self._back_offs += 1
        self._allowed = max(1, self._allowed // 2)
        if seconds is None:
            seconds = min(2.0**self._back_offs * random.uniform(0.5, 1.0), longest)
        is_patient = self._back_offs < BACK_OFFS or now - self._backing_off_since < self._patience_seconds
        if seconds > longest or not is_patient:
            self.give_up(host_given_up(failure), now, max(GIVEN_UP_SECONDS, min(seconds, 3600.0)))
        self._quiet_until = now + min(seconds, longest)
        self._pauses += min(seconds, longest)

    def paused_seconds(self, now: float) -> float:
        """For how long it has been left alone so far, because it asked for that."""
        return self._pauses - max(0.0, self._quiet_until - now)


class Sites:
    """Sites by their origin; those that were not used for longest are forgotten."""

    def __init__(self, connections: int, patience_seconds: float):
        """connections: to one site at a time; patience_seconds: for which one is waited for when it fails."""
        self._connections = connections
        self._patience_seconds = patience_seconds
        self._sites: dict[str, Site] = {}  # in the order of use
        self._with_robots: dict[Site, int] = {}  # in the order of their answers, with the size

    def __iter__(self) -> Iterator[Site]:
        return iter(self._sites.values())

    def at(self, origin: str) -> Site:
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
        """Remember what a site allows, and forget the oldest of the others that there is no room for.

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
    """How long to wait before the attempt after this one (from 0); what failed together does not return together."""
    return float(2**attempt * random.uniform(1.0, 1.5))


def host_given_up(failure: FetchFailure) -> FetchFailure:
    """What becomes of the URLs of a site that fails so."""
    return FetchFailure(FetchReason.host_given_up.value, f"host given up: {failure.message}")
