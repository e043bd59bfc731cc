"""How much a site is asked for at a time, and when it is left alone."""

from __future__ import annotations

import random
from collections import deque
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

from diptych_shards.fetch.outcome import FetchFailure
from diptych_shards.fetch.robots import Robots

if TYPE_CHECKING:
    from diptych_shards.fetch.job import Job

FAILURES_OF_A_STRANGER = 3
"""In a row, before a site that never answered is given up; one that did has twice its connections."""
BACK_OFFS = 5
"""In a row, before a site that keeps sending 429 is given up."""
GIVEN_UP_SECONDS = 300.0
ROBOTS_SECONDS = 86_400.0
"""RFC 9309: no copy of robots.txt is used longer."""


class Site:
    """One scheme, host and port: what waits for it, and what is known of it."""

    def __init__(self, origin: str, connections: int):
        self.origin = origin
        self.robots: Robots | None = None
        self.robots_until = 0.0
        """Until when `robots` is used; before the first time, 0."""
        self._connections = connections
        self._allowed = 1  # until it has answered: ten thousand URLs do not knock at a dead host together
        self._has_answered = False
        self._failures = 0
        self._back_offs = 0
        self._quiet_until = 0.0
        self._pauses = 0.0
        self._given_up: FetchFailure | None = None
        self._given_up_until = 0.0
        self.queue: deque[Job] = deque()
        self.clear()

    def clear(self) -> None:
        """Nothing waits for it, and nothing is in flight: what follows is kept by the frontier."""
        self.queue.clear()
        self.in_flight = 0
        self.is_asking_robots = False
        self.is_in_rotation = False
        self.is_resting = False
        """It will be woken when it may be asked again."""

    def can_start(self, now: float) -> bool:
        return (
            bool(self.queue)
            and self.in_flight < self._allowed
            and now >= self._quiet_until
            and not self.is_asking_robots
        )

    @property
    def is_idle(self) -> bool:
        return not self.queue and not self.in_flight and not self.is_asking_robots

    @property
    def quiet_until(self) -> float:
        return self._quiet_until

    def given_up(self, now: float) -> FetchFailure | None:
        """Why its URLs fail without being asked for; None while they are worth a try."""
        if self._given_up is not None and now >= self._given_up_until:
            self._given_up = None
            self._allowed = 1
        return self._given_up

    def note_answer(self) -> None:
        """It answered, whatever it said: one connection more."""
        self._has_answered = True
        self._failures = self._back_offs = 0
        limit = 1 if self.robots is not None and self.robots.has_delay else self._connections
        self._allowed = min(self._allowed + 1, limit)

    def note_failure(self, failure: FetchFailure, now: float) -> None:
        """It did not answer, or not to the end."""
        self._failures += 1
        limit = 2 * self._connections if self._has_answered else FAILURES_OF_A_STRANGER
        if self._failures >= limit:
            self.give_up(failure, now, GIVEN_UP_SECONDS)

    def give_up(self, failure: FetchFailure, now: float, seconds: float) -> None:
        """From now on its URLs fail; one is tried when the time is over, and decides."""
        self._given_up, self._given_up_until = failure, now + seconds
        self._failures = max(self._failures - 1, 0)

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
        self._back_offs += 1
        self._allowed = max(1, self._allowed // 2)
        if seconds is None:
            seconds = min(2.0**self._back_offs * random.uniform(0.5, 1.0), longest)
        if seconds > longest or self._back_offs >= BACK_OFFS:
            self.give_up(failure, now, max(GIVEN_UP_SECONDS, min(seconds, 3600.0)))
        self._quiet_until = now + min(seconds, longest)
        self._pauses += min(seconds, longest)

    def paused_seconds(self, now: float) -> float:
        """For how long it has been left alone so far, because it asked for that."""
        return self._pauses - max(0.0, self._quiet_until - now)


def retry_after_seconds(value: str | None, *, now: datetime | None = None) -> float | None:
    """What a Retry-After header says, as seconds or as a date; None where it says nothing that can be read."""
    if value is None:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        until = parsedate_to_datetime(value)
    except (TypeError, ValueError):
        return None
    if until.tzinfo is None:
        until = until.replace(tzinfo=timezone.utc)
    return max(0.0, (until - (now or datetime.now(timezone.utc))).total_seconds())


def retry_delay_seconds(attempt: int) -> float:
    """How long to wait before the attempt after this one (from 0); what failed together does not return together."""
    return float(2**attempt * random.uniform(0.25, 1.0))
