"""What the owner of a picture or a page forbids: in X-Robots-Tag, by the TDM reservation protocol.

https://www.w3.org/community/reports/tdmrep/CG-FINAL-tdmrep-20240510/
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

RESERVATION = "tdm-reservation"

_WITH_VALUE = frozenset({"max-snippet", "max-image-preview", "max-video-preview", "unavailable_after"})
_BETWEEN_WORDS = re.compile(r"[\s;]+")
_AGENT = re.compile(r"[a-z0-9_.*/-]*[a-z_*][a-z0-9_.*/-]*").fullmatch


def forbids(lines: Iterable[str], agent: str, directives: Collection[str]) -> bool:
    """Whether one of these directives stands in the header's lines, for every agent or for ours.

    `none` says noindex and nofollow. `otherbot: noai` speaks to another agent, and so does all that follows in its
    line; `max-snippet:5, noai` and
    `unavailable_after: Wed, 01 Jan 2031 00:00:00 GMT, noai` name no agent.

    agent: our product token, in lower case; directives: in lower case.
    """
    return any(_line_forbids(line.lower(), agent, directives) for line in lines)


def is_reserved(value: str) -> bool:
    """Whether a TDM-Reservation header, or a meta of that name, reserves text and data mining."""
    return value.strip() == "1"


def product_token(user_agent: str) -> str:
    """The name by which robots.txt and X-Robots-Tag call us: `diptych-shards/0.1 (…)` is `diptych-shards`."""
    return re.split(r"[/\s(]", user_agent.strip(), maxsplit=1)[0].lower()


def _line_forbids(line: str, agent: str, directives: Collection[str]) -> bool:
    is_for_us = True
    for piece in line.split(","):
        name, colon, rest = piece.partition(":")
        name = name.strip()
        if colon and name not in _WITH_VALUE and name not in directives:
            if _AGENT(name) is None:
                continue  # the rest of a date: `01 Jan 2031 00:00:00 GMT`
            is_for_us = name in ("*", agent)
            name = rest.partition(":")[0].strip()
        if is_for_us and any(word in directives for word in _words(name)):
            return True
    return False


def _words(text: str) -> list[str]:
    """The directives of a piece that should have one, but where commas were forgotten."""
    words = _BETWEEN_WORDS.split(text)
    return [*words, "noindex"] if "none" in words else words
