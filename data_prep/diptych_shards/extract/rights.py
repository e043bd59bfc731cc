"""Find what the owner of a page allows and forbids: the licence that it links to, and its opt-outs."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from diptych_shards.fetch.options import DEFAULT_USER_AGENT, OPT_OUT_DIRECTIVES
from diptych_shards.fetch.permission import RESERVATION, directives_in, is_reserved, product_token
from diptych_shards.web_address import BadUrlError, BaseUrl

_COMMONS = re.compile(r"(?:https?:)?//(?:[\w-]+\.)?creativecommons\.org/(?:licenses|publicdomain)/", re.IGNORECASE)
_HINT = re.compile(rb"creativecommons\.org/(?:licenses|publicdomain)|rel=[\"']?[^\"'>]{0,40}license")
MAX_LINKS = 100
_META_NAMES = ("robots", product_token(DEFAULT_USER_AGENT))
"""The names of metas that address us; `googlebot` and the like address others."""


class LicenceFinder:
    """Finds the first link with rel=license, or else the first to a licence of Creative Commons.

    It is the licence of the page, and not necessarily of its pictures.
    """

    def __init__(self) -> None:
        self._said: list[str] = []
        self._commons: list[str] = []

    @staticmethod
    def may_find(html: bytes) -> bool:
        """Whether the page may link to a licence."""
        return b"creativecommons.org" in html or b"license" in html and _HINT.search(html) is not None

    @staticmethod
    def may_be(attributes: bytes) -> bool:
        return b"license" in attributes or b"creativecommons" in attributes

    def see(self, rel: str, href: str) -> None:
        if "license" in rel.lower().split() and len(self._said) < MAX_LINKS:
            self._said.append(href)
        if _COMMONS.match(href.strip()) and len(self._commons) < MAX_LINKS:
            self._commons.append(href)

    def found(self, base_url: BaseUrl) -> str | None:
        for href in (*self._said, *self._commons):
            try:
                return base_url.resolve(href)
            except BadUrlError:
                continue
        return None


class OptOuts:
    """Collects what the metas and headers of one page forbid."""

    def __init__(self, robots_tags: Iterable[str] = (), reservation: str = ""):
        """robots_tags: the lines of the header X-Robots-Tag. reservation: the header TDM-Reservation."""
        self._robots = list(robots_tags)
        self._is_reserved = is_reserved(reservation)

    def see_meta(self, name: str, content: str) -> None:
        """name: in lower case."""
        if name in _META_NAMES:
            self._robots.append(content)
        elif name == RESERVATION:
            self._is_reserved = self._is_reserved or is_reserved(content)

    def found(self, directives: Collection[str]) -> tuple[str, ...]:
        """The directives that the page states, among `directives` and those that we know."""
        if not self._robots and not self._is_reserved:
            return ()
        known = dict.fromkeys((*OPT_OUT_DIRECTIVES, *directives))
        stated = directives_in(self._robots, _META_NAMES[1], frozenset(known))
        if self._is_reserved:
            stated.add(RESERVATION)
        return tuple(name for name in known if name in stated)
