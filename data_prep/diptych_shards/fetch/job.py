"""A URL on its way, redirects and repetitions included."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from diptych_shards.fetch.outcome import FetchFailure
from diptych_shards.fetch.url import Url

if TYPE_CHECKING:
    from diptych_shards.fetch.politeness import Site

LEAST_SECONDS = 0.05
"""With less left, a URL is not asked for again."""
MAX_WAIT_SECONDS = 600.0
"""For the pauses that hosts ask for, beside the time a URL has; in queues behind other URLs it may wait longer."""


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
        """Whose robots.txt it is; it belongs to no caller, and waits at no site."""
        self.site: Site | None = None
        """Where it waits, or is asked for."""
        self.seconds_left = seconds
        self.redirects = 0
        self.attempt = 0
        self.failure: FetchFailure | None = None
        """Its last, if that may be its site's fault; the first counts against the site."""
        self.deadline = math.inf
        """Once it has been asked for: then it waits for nothing but pauses, names and redirects."""
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
