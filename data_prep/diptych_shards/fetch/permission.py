"""What a site allows us: robots.txt (RFC 9309), X-Robots-Tag and the TDM reservation protocol.

https://www.w3.org/community/reports/tdmrep/CG-FINAL-tdmrep-20240510/
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from functools import lru_cache
from typing import Any

RESERVATION = "tdm-reservation"

_WITH_VALUE = frozenset({"max-snippet", "max-image-preview", "max-video-preview", "unavailable_after"})
_BETWEEN_WORDS = re.compile(r"[\s;]+")
_AGENT = re.compile(r"[a-z0-9_.*/-]*[a-z_*][a-z0-9_.*/-]*").fullmatch
MAX_ROBOTS_BYTES = 512_000
"""How much of a robots.txt is read; RFC 9309 asks for at least 500 KiB."""

_AGENT_LINE = re.compile(r"(?i)(\s*user[-\s]*agent\s*[:\s]\s*)([^#]*)").match
_NOT_US = "{other}"  # no agent's name contains braces


class Robots:
    """The rules of a robots.txt for one agent."""

    def __init__(self, text: str, agent: str):
        self._agent = agent
        self.size = len(text)
        self._rules = _parse(text, agent)

    def allows(self, url: str) -> bool:
        return self._rules is None or bool(self._rules.can_fetch(url, self._agent))

    @property
    def has_delay(self) -> bool:
        """Whether it has a Crawl-delay, which is not in RFC 9309: we then send one request at a time."""
        return self._rules is not None and bool(self._rules.crawl_delay(self._agent))


def decode_robots(body: bytes) -> str:
    return body[:MAX_ROBOTS_BYTES].decode("utf-8-sig", errors="replace")


def forbids(lines: Iterable[str], agent: str, directives: Collection[str]) -> bool:
    """Whether the lines of the header contain one of these directives, for every agent or for ours.

    agent: our product token, in lower case; directives: in lower case.
    """
    return bool(directives_in(lines, agent, frozenset(directives)))


def directives_in(lines: Iterable[str], agent: str, known: frozenset[str]) -> set[str]:
    """Find the known directives in the lines of the header that are for every agent or for ours.

    `none` also means noindex and nofollow. `otherbot: noai` is for another agent, as is the rest of its line;
    `max-snippet:5, noai` and `unavailable_after: Wed, 01 Jan 2031 00:00:00 GMT, noai` name no agent.

    agent: our product token, in lower case; known: in lower case.
    """
    return {name for line in lines for name in _directives_of(line.lower(), agent, known)}


def is_reserved(value: str) -> bool:
    """Whether a TDM-Reservation header, or a meta of that name, reserves text and data mining."""
    return value.strip() == "1"


def product_token(user_agent: str) -> str:
    """Our name in robots.txt and X-Robots-Tag: that of `diptych-shards/0.1 (…)` is `diptych-shards`."""
    return re.split(r"[/\s(]", user_agent.strip(), maxsplit=1)[0].lower()


def _parse(text: str, agent: str) -> Any:
    if not text.strip():
        return None
    from protego import Protego

    # Thousands of agents above thousands of rules would give millions of pairs: we make all other agents one.
    return Protego.parse("\n".join(_without_others(line, agent) for line in text.splitlines()))


def _without_others(line: str, agent: str) -> str:
    match = _AGENT_LINE(line)
    if match is None:
        return line
    name = match[2].strip().lower()
    if name == "*" or name.replace("*", "") in agent:
        return line
    return match[1] + _NOT_US


@lru_cache(maxsize=1_000)  # most pages have one of a few lines, such as `index, follow`
def _directives_of(line: str, agent: str, known: frozenset[str]) -> frozenset[str]:
    found: set[str] = set()
    is_for_us = True
    for piece in line.split(","):
        name, colon, rest = piece.partition(":")
        name = name.strip()
        if colon and name not in _WITH_VALUE and name not in known:
            if _AGENT(name) is None:
                continue  # the rest of a date: `01 Jan 2031 00:00:00 GMT`
            is_for_us = name in ("*", agent)
            name = rest.partition(":")[0].strip()
        if is_for_us:
            found.update(_words(name))
    return known & found


def _words(text: str) -> list[str]:
    """The directives in one piece of a line: more than one if commas were forgotten."""
    words = _BETWEEN_WORDS.split(text)
    return [*words, "noindex", "nofollow"] if "none" in words else words
