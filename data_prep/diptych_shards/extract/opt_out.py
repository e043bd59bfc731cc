"""What the owner of a page forbids: in its metas and its headers."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from diptych_shards.fetch.options import DEFAULT_USER_AGENT, OPT_OUT_DIRECTIVES
from diptych_shards.fetch.permission import RESERVATION, directives_in, is_reserved, product_token

_META_NAMES = ("robots", product_token(DEFAULT_USER_AGENT))
"""Of metas that speak to us; those of `googlebot` and the like speak to others."""


class OptOuts:
    """What has been seen of one page."""

    def __init__(self, robots_tags: Iterable[str] = (), reservation: str = ""):
        """The page's headers: the lines of X-Robots-Tag, and TDM-Reservation."""
        self._robots = list(robots_tags)
        self._is_reserved = is_reserved(reservation)

    def see_meta(self, name: str, content: str) -> None:
        """name: in lower case."""
        if name in _META_NAMES:
            self._robots.append(content)
        elif name == RESERVATION:
            self._is_reserved = self._is_reserved or is_reserved(content)

    def found(self, directives: Collection[str]) -> tuple[str, ...]:
        """Those of `directives`, and of those we know, that the page states."""
        if not self._robots and not self._is_reserved:
            return ()
        known = dict.fromkeys((*OPT_OUT_DIRECTIVES, *directives))
        stated = directives_in(self._robots, _META_NAMES[1], frozenset(known))
        if self._is_reserved:
            stated.add(RESERVATION)
        return tuple(name for name in known if name in stated)
