"""The crawl frontier: the URLs that wait, and which of them is next.

A URL waits in the queue of its site; sites take turns, one URL each. Other URLs wait outside these queues: those
whose host is being looked up, those to be repeated later, and urgent ones, which go first.
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
    """The jobs that are not in transfer."""

    def __init__(self, options: FetchOptions, sites: Sites):
        self.num_at_sites = 0
        """Jobs in the queues of sites."""
        self._options = options
        self._sites = sites
        self._rotation: deque[Site] = deque()  # sites that take turns, each listed once
        self._urgent: deque[Job] = deque()  # robots.txt, and jobs whose host has been looked up
        self._awaiting_lookup: dict[str, list[Job]] = {}  # by host, while it is looked up
        self._later: list[tuple[float, int, Site | Job]] = []  # heap: pausing sites, jobs to be repeated
        self._order = count()

    @property
    def is_empty(self) -> bool:
        return not (self.num_at_sites or self._later or self._urgent or self._awaiting_lookup)

    @property
    def num_lookups(self) -> int:
        """Hosts that jobs wait for, because they are being looked up."""
        return len(self._awaiting_lookup)

    @property
    def next_due(self) -> float:
        """When `take_due` will have something to do."""
        return self._later[0][0] if self._later else math.inf

    def next(self, now: float) -> Job | None:
        """Take the job whose turn it is, which its site then counts as in flight; None if no job may start."""
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
        """Put a job into the queue of this site."""
        job.site = site
        job.paused_before = site.paused_seconds(now)
        if job.has_failed:
            site.tried.append(job)
        elif job.redirects or job.attempt:
            site.queue.appendleft(job)  # finish started jobs first
        else:
            site.queue.append(job)
        self.num_at_sites += 1
        self.wake(site, now)

    def take_first(self, site: Site, now: float) -> Job | None:
        """Take the next job of this site, to request it now; None if none waits."""
        if not site.has_waiting:
            return None
        self.num_at_sites -= 1
        job = site.take_next()
        job.begin(now)
        return job

    def add_urgent(self, job: Job) -> None:
        """Let a job go before all others."""
        self._urgent.append(job)

    def add_for_lookup(self, job: Job) -> None:
        """Let a job wait for the lookup of its host."""
        self._awaiting_lookup.setdefault(job.url.host, []).append(job)

    def add_later(self, job: Job, when: float) -> None:
        """Let a job wait until this time."""
        heapq.heappush(self._later, (when, next(self._order), job))

    def end(self, job: Job) -> None:
        """Count a job as no longer in flight. When its fate is decided, the caller has to `wake` its site."""
        if job.site is not None:
            job.site.in_flight -= 1

    def take_looked_up(self, host: str) -> list[Job]:
        """Take the jobs that waited for the lookup of this host."""
        return self._awaiting_lookup.pop(host, [])

    def take_due(self, now: float) -> Iterator[Job]:
        """Take the jobs to be repeated now, and let sites whose pause is over take turns again."""
        while self._later and self._later[0][0] <= now:
            due = heapq.heappop(self._later)[2]
            if isinstance(due, Site):
                due.is_resting = False
                self.wake(due, now)
            else:
                yield due

    def take_queue(self, site: Site) -> list[Job]:
        """Take all jobs that wait at this site."""
        jobs = [*site.tried, *site.queue]
        site.tried.clear()
        site.queue.clear()
        self.num_at_sites -= len(jobs)
        return jobs

    def take_late(self, now: float) -> list[Job]:
        """Take the jobs that have waited too long, by `Job.is_late`."""
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
        """Let a site take turns if it may be requested from; to be called whenever that may have changed."""
        if site.is_in_rotation or site.is_resting:
            return
        if site.can_start(now):
            site.is_in_rotation = True
            self._rotation.append(site)
        elif site.has_waiting and now < site.quiet_until:
            site.is_resting = True
            heapq.heappush(self._later, (site.quiet_until, next(self._order), site))

    def clear(self) -> None:
        """Forget all jobs, those in flight too."""
        for site in self._sites:
            site.clear()
        self.num_at_sites = 0
        self._rotation.clear()
        self._urgent.clear()
        self._awaiting_lookup.clear()
        self._later.clear()

    def _next_of(self, site: Site, now: float) -> Job:
        if self._options.respect_robots_txt and now >= site.robots_until:
            site.is_asking_robots = True
            url = parse_url(site.origin + "/robots.txt")
            return Job(-1, url, self._options.timeout_seconds, robots_of=site)
        job = self.take_first(site, now)
        assert job is not None  # since the site can start one
        site.in_flight += 1
        self.wake(site, now)
        return job
