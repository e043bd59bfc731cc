"""The sites that were met: what is known of them is remembered, up to a limit."""

from __future__ import annotations

from collections.abc import Iterator

from diptych_shards.fetch.politeness import Site
from diptych_shards.fetch.robots import Robots

MAX_SITES = 5_000
"""Whose robots.txt and manners are remembered."""
MAX_ROBOTS_KEPT = 2 * 2**20
"""Characters of robots.txt in all; parsed, they take eighteen times as much."""


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
