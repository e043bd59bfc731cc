"""Decide what follows from an answer: whether its URL is done, repeated or redirected, and what its site can take."""

from __future__ import annotations

from collections import deque

from diptych_shards.fetch.answer import Headers, read_file, read_picture
from diptych_shards.fetch.frontier import Frontier
from diptych_shards.fetch.options import FetchOptions
from diptych_shards.fetch.outcome import (
    BLOCKED,
    DISALLOWED,
    TOO_MANY_REDIRECTS,
    WAITED_TOO_LONG,
    Fetched,
    FetchFailure,
    body_bytes,
    fails_all_urls,
    is_worth_repeating,
    means_no_robots,
    robots_verdict,
)
from diptych_shards.fetch.permission import RESERVATION, Robots, decode_robots, forbids, is_reserved, product_token
from diptych_shards.fetch.site import GIVEN_UP_SECONDS, Job, Site, Sites, retry_delay_seconds
from diptych_shards.fetch.transfer import BodyMemory, Transfer
from diptych_shards.fetch.url import Url, is_within, normalise_domain

MAX_REDIRECTS = 5
"""What RFC 9309 asks for, for robots.txt. The address of each redirect is checked."""


class Dispatch:
    """Puts jobs into the frontier until they have an outcome, and keeps what is learnt about their sites."""

    def __init__(self, options: FetchOptions, sites: Sites, frontier: Frontier, memory: BodyMemory):
        """Read the list of blocked domains from the options.

        Raises:
            ValueError: a blocked domain is not a valid domain.
        """
        self.outcomes: deque[tuple[int, Fetched | FetchFailure]] = deque()
        """Outcomes to hand out. `memory` counts their bodies, until the code that takes one subtracts its size."""
        self._options = options
        self._sites = sites
        self._frontier = frontier
        self._memory = memory
        self._blocked = frozenset(map(normalise_domain, options.blocked_domains))
        self._agent = product_token(options.user_agent)
        self._directives = frozenset(directive.lower() for directive in options.opt_out_directives)

    def admit(self, job: Job, now: float) -> None:
        """Put a job into the queue of its site, or refuse its URL."""
        if self._blocked and is_within(job.url.host, self._blocked):
            self._conclude(job, BLOCKED, now)
            return
        if job.robots_of is not None:
            self._frontier.add_urgent(job)
            return
        site = self._sites.at(job.url.origin)
        given_up = site.given_up(now)
        if given_up is not None:
            self._conclude(job, job.failure or given_up, now)
        else:
            self._frontier.add(job, site, now)

    def allows(self, job: Job, now: float) -> bool:
        """Whether robots.txt allows the URL of the job; if not, conclude the job."""
        site = job.site
        if site is None or site.robots is None or site.robots.allows(str(job.url)):
            return True
        self._frontier.end(job)
        self._conclude(job, DISALLOWED, now)
        self._frontier.wake(site, now)
        return False

    def wants_body(self, status: int, headers: Headers) -> bool:
        """Whether to read the body of an answer: only if the status is 200 and no header opts out."""
        return status == 200 and not self._is_opted_out(headers)

    def take_answer(self, job: Job, transfer: Transfer, now: float) -> None:
        """Decide what an ended transfer means for its job and its site."""
        self._frontier.end(job)
        job.seconds_left -= now - transfer.started
        outcome = self._read(job, transfer)
        pause = transfer.answer.pause
        site = job.site  # a redirect changes `job.site`
        if isinstance(outcome, FetchFailure) and transfer.answer.is_silence:
            at = site or job.robots_of
            final = at is not None and fails_all_urls(outcome, has_answered=at.has_answered)
            self._take_silence(job, outcome, transfer.started, now, is_final=final)
        elif site is None:
            self._settle(job, outcome, now, pause_seconds=(pause.seconds if pause is not None else None) or 0.0)
        elif pause is not None:
            longest = self._options.max_retry_after_seconds
            site.back_off(pause.failure, transfer.started, pause.seconds, now, longest)
            self._fail_if_given_up(site, now)
            self._settle(job, outcome, now)
        elif isinstance(outcome, FetchFailure) and transfer.answer.is_error:
            site.note_error(transfer.started, now, has_failed=job.has_failed)
            self._wait_or_settle(job, site, outcome, now)
        else:
            site.note_answer(has_failed=job.has_failed)
            self._settle(job, outcome, now)
        if site is not None:
            self._frontier.wake(site, now)

    def take_failed_lookup(self, job: Job, failure: FetchFailure, now: float, *, is_final: bool) -> None:
        """Decide what follows from a failed lookup. is_final: whether another lookup soon would fail too."""
        self._frontier.end(job)
        site = job.site
        self._take_silence(job, failure, now, now, is_final=is_final)
        if site is not None:
            self._frontier.wake(site, now)

    def fail_late_jobs(self, now: float) -> None:
        """Fail the jobs that have waited too long for pauses of their hosts."""
        self.outcomes.extend((job.ticket, WAITED_TOO_LONG) for job in self._frontier.take_late(now))

    def clear(self) -> None:
        """Drop the outcomes that were not handed out."""
        while self.outcomes:
            self._memory.held_bytes -= body_bytes(self.outcomes.popleft()[1])

    def _read(self, job: Job, transfer: Transfer) -> Fetched | FetchFailure | Url:
        answer = transfer.answer
        if job.robots_of is not None:
            outcome = read_file(answer, job.url, transfer.wanted)
        else:
            is_opted_out = answer.headers is not None and self._is_opted_out(answer.headers)
            outcome = read_picture(answer, job.url, transfer.wanted, is_opted_out=is_opted_out)
        if isinstance(outcome, Url) and job.redirects >= MAX_REDIRECTS:
            return TOO_MANY_REDIRECTS
        return outcome

    def _is_opted_out(self, headers: Headers) -> bool:
        if RESERVATION in self._directives and is_reserved(headers.tdm_reservation):
            return True
        return bool(headers.robots_tags) and forbids(headers.robots_tags, self._agent, self._directives)

    def _take_silence(self, job: Job, failure: FetchFailure, started: float, now: float, *, is_final: bool) -> None:
        """Decide what follows when a request got no answer.

        started: when the request started.
        is_final: whether every URL of this host would fail in the same way.
        """
        site = job.site
        if is_final:
            if site is not None:
                site.give_up(failure, now, GIVEN_UP_SECONDS)
                self._fail_if_given_up(site, now)
            self._conclude(job, failure, now)
            return
        if job.robots_of is not None:
            if job.redirects:
                self._settle(job, failure, now)  # the redirect led to another host
                return
            # Count it as a failure of the next job, which cannot be requested without a robots.txt.
            site = job.robots_of
            site.is_asking_robots = False
            first = self._frontier.take_first(site, now)
            if first is None:
                return
            job = first
        assert site is not None
        site.note_silence(failure, started, now, has_failed=job.has_failed)
        self._wait_or_settle(job, site, failure, now)
        self._frontier.wake(site, now)

    def _wait_or_settle(self, job: Job, site: Site, failure: FetchFailure, now: float) -> None:
        """Put a failed job back into the queue if its site is at fault; else settle it."""
        job.failure = failure
        if site.is_waited_for and job.has_time(now):
            self._frontier.add(job, site, now)
        else:
            self._settle(job, failure, now)
        self._fail_if_given_up(site, now)

    def _settle(
        self, job: Job, outcome: Fetched | FetchFailure | Url, now: float, *, pause_seconds: float = 0.0
    ) -> None:
        """Repeat a job, follow its redirect, or conclude it.

        pause_seconds: the shortest wait before a repeat, for a robots.txt: its pauses are not kept by a site.
        """
        given_up = job.site is not None and job.site.given_up(now) is not None
        if isinstance(outcome, FetchFailure) and not given_up and self._is_repeated(job, outcome, now, pause_seconds):
            self._frontier.add_later(job, now + max(retry_delay_seconds(job.attempt), pause_seconds))
            job.attempt += 1
        elif isinstance(outcome, Url):
            job.url = outcome
            job.redirects += 1
            self.admit(job, now)
        else:
            self._conclude(job, outcome, now)

    def _is_repeated(self, job: Job, failure: FetchFailure, now: float, pause_seconds: float) -> bool:
        return (
            is_worth_repeating(failure)
            and job.attempt < self._options.retries
            and job.has_time(now)
            and pause_seconds <= self._options.max_retry_after_seconds
        )

    def _conclude(self, job: Job, outcome: Fetched | FetchFailure, now: float) -> None:
        """Hand out the outcome of a job; that of a robots.txt goes to its site."""
        if job.robots_of is not None:
            self._take_robots(job, job.robots_of, outcome, now)
            return
        self._memory.held_bytes += body_bytes(outcome)
        self.outcomes.append((job.ticket, outcome))

    def _take_robots(self, job: Job, site: Site, outcome: Fetched | FetchFailure, now: float) -> None:
        """Continue with the URLs of a site by its robots.txt; give the site up if that could not be fetched."""
        if isinstance(outcome, Fetched):
            self._sites.keep_robots(site, Robots(decode_robots(outcome.data), self._agent), now)
        elif means_no_robots(outcome):
            self._sites.keep_robots(site, None, now)
        else:
            site.give_up(robots_verdict(outcome, was_redirected=job.redirects > 0), now, GIVEN_UP_SECONDS)
            self._fail_if_given_up(site, now)
        site.is_asking_robots = False
        self._frontier.wake(site, now)

    def _fail_if_given_up(self, site: Site, now: float) -> None:
        """Fail all jobs that wait at a site which has been given up."""
        given_up = site.given_up(now)
        if given_up is None:
            return
        # If all of them were requested, each fails for its own reason.
        were_all_asked = not site.queue
        for job in self._frontier.take_queue(site):
            failure = job.failure if were_all_asked else None
            self.outcomes.append((job.ticket, failure or given_up))
