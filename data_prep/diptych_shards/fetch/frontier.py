"""The frontier: which URLs wait where, and whose turn it is.

A URL waits at its site until the site may be asked; sites take turns, one URL each. Outside these queues wait URLs
whose host is being looked up, URLs to be repeated later, and those that go before all others.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Iterator
from itertools import count

from diptych_shards.fetch.options import FetchOptions
from diptych_shards.fetch.site import Job, Site, Sites
from diptych_shards.fetch.url import parse_url


class Frontier:
    """Jobs that are not in transfer."""

    def __init__(self, options: FetchOptions, sites: Sites):
        self.num_at_sites = 0
        """Jobs in the queues of sites."""
        self._options = options
        self._sites = sites
        self._rotation: deque[Site] = deque()  # sites that may be asked, each once
        self._urgent: deque[Job] = deque()  # robots.txt, and whose host was looked up
        self._nameless: dict[str, list[Job]] = {}  # by host, while it is looked up
        self._later: list[tuple[float, int, Site | Job]] = []  # heap: sites after a pause, jobs to be repeated
        self._order = count()

    @property
    def is_empty(self) -> bool:
        return not (self.num_at_sites or self._later or self._urgent or self._nameless)

    @property
    def num_nameless(self) -> int:
        """Hosts that are looked up, and waited for."""
        return len(self._nameless)

    @property
    def next_due(self) -> float:
        """When `take_due` will have something to do."""
        return self._later[0][0] if self._later else math.inf

    def next(self, now: float) -> Job | None:
        """The job whose turn it is; None if nobody may be asked for anything. Its `site` has it in flight."""
        if self._urgent:
            return self._urgent.popleft()
        while self._rotation:
            site = self._rotation.popleft()
            site.is_in_rotation = False
            if site.can_start(now):
                return self._next_of(site, now)
            self.wake(site, now)
        return None

    def add(self, job: Job, site: Site, now: float) -> None:
        """Let it wait at this site."""
        job.site = site
        job.paused_before = site.paused_seconds(now)
        if job.was_in_vain:
            site.tried.append(job)
        elif job.redirects or job.attempt:
            site.queue.appendleft(job)  # finish started jobs first
        else:
            site.queue.append(job)
        self.num_at_sites += 1
        self.wake(site, now)

    def take_first(self, site: Site, now: float) -> Job | None:
        """The job that is asked for next at this site, as if it had been; None if nothing waits there."""
        if not site.has_waiting:
            return None
        self.num_at_sites -= 1
        job = site.take_next()
        job.begin(now)
        return job

    def add_urgent(self, job: Job) -> None:
        """It goes before all others."""
        self._urgent.append(job)

    def add_nameless(self, job: Job) -> None:
        """It waits for its host to be looked up."""
        self._nameless.setdefault(job.url.host, []).append(job)

    def add_later(self, job: Job, when: float) -> None:
        heapq.heappush(self._later, (when, next(self._order), job))

    def end(self, job: Job) -> None:
        """It is in flight no more; its site has to be woken when what follows from that is known."""
        if job.site is not None:
            job.site.in_flight -= 1

    def take_named(self, host: str) -> list[Job]:
        """The jobs that waited for this host to be looked up."""
        return self._nameless.pop(host, [])

    def take_due(self, now: float) -> Iterator[Job]:
        """The jobs to be repeated now; sites whose pause is over take turns again."""
        while self._later and self._later[0][0] <= now:
            due = heapq.heappop(self._later)[2]
            if isinstance(due, Site):
                due.is_resting = False
                self.wake(due, now)
            else:
                yield due

    def take_queue(self, site: Site) -> list[Job]:
        """All that waits at this site."""
        jobs = [*site.tried, *site.queue]
        site.tried.clear()
        site.queue.clear()
        self.num_at_sites -= len(jobs)
        return jobs

    def take_late(self, now: float) -> list[Job]:
        """The jobs that have waited for longer than anybody would."""
        all_late: list[Job] = []
        for site in self._sites:
            for queue in (site.tried, site.queue):
                late = [job for job in queue if job.is_late(site, now)]
                if late:
                    kept = [job for job in queue if not job.is_late(site, now)]
                    queue.clear()
                    queue.extend(kept)
                    all_late += late
        self.num_at_sites -= len(all_late)
        return all_late

    def wake(self, site: Site, now: float) -> None:
        """Let a site take turns, if it may be asked for something; called when that may have changed."""
        if site.is_in_rotation or site.is_resting:
            return
        if site.can_start(now):
            site.is_in_rotation = True
            self._rotation.append(site)
        elif site.has_waiting and now < site.quiet_until:
            site.is_resting = True
            heapq.heappush(self._later, (site.quiet_until, next(self._order), site))

    def clear(self) -> None:
        """Nothing waits any more, and nothing is in flight."""
        for site in self._sites:
            site.clear()
        self.num_at_sites = 0
        self._rotation.clear()
        self._urgent.clear()
        self._nameless.clear()
        self._later.clear()

    def _next_of(self, site: Site, now: float) -> Job:
        if self._options.respect_robots_txt and now >= site.robots_until:
            site.is_asking_robots = True
            url = parse_url(site.origin + "/robots.txt")
            return Job(-1, url, self._options.timeout_seconds, robots_of=site)
        job = self.take_first(site, now)
        assert job is not None  # it may start
        site.in_flight += 1
        self.wake(site, now)
        return job
