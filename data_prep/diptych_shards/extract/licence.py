"""The licence a page links to. It speaks for the page, and not surely for its pictures."""

from __future__ import annotations

import re

from diptych_shards.extract.urls import BadUrlError, Resolver

_COMMONS = re.compile(r"(?:https?:)?//(?:[\w-]+\.)?creativecommons\.org/(?:licenses|publicdomain)/", re.IGNORECASE)
_HINT = re.compile(rb"creativecommons\.org/(?:licenses|publicdomain)|rel=[\"']?[^\"'>]{0,40}license")
MAX_LINKS = 100


class LicenceFinder:
    """The first link with rel=license, or else the first to a licence of Creative Commons."""

    def __init__(self) -> None:
        self._said: list[str] = []
        self._commons: list[str] = []

    @staticmethod
    def may_find(html: bytes) -> bool:
        """Whether the links of the page are worth a look."""
        return b"creativecommons.org" in html or b"license" in html and _HINT.search(html) is not None

    @staticmethod
    def may_be(attributes: bytes) -> bool:
        return b"license" in attributes or b"creativecommons" in attributes

    def see(self, rel: str, href: str) -> None:
        if "license" in rel.lower().split() and len(self._said) < MAX_LINKS:
            self._said.append(href)
        if _COMMONS.match(href.strip()) and len(self._commons) < MAX_LINKS:
            self._commons.append(href)

    def found(self, resolver: Resolver) -> str | None:
        for href in (*self._said, *self._commons):
            try:
                return resolver.resolve(href)
            except BadUrlError:
                continue
        return None
