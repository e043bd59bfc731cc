"""What a site's robots.txt allows us (RFC 9309)."""

from __future__ import annotations

import re
from typing import Any

MAX_BYTES = 512_000
"""RFC 9309 asks for 500 KiB at least; what follows is not read."""

_AGENT_LINE = re.compile(r"(?i)(\s*user[-\s]*agent\s*[:\s]\s*)([^#]*)").match
_NOT_US = "{other}"  # braces stand in no agent's name


class Robots:
    """The rules for one agent."""

    def __init__(self, text: str, agent: str):
        self._agent = agent
        self.size = len(text)
        self._rules = _parse(text, agent)

    def allows(self, url: str) -> bool:
        return self._rules is None or bool(self._rules.can_fetch(url, self._agent))

    @property
    def has_delay(self) -> bool:
        """Whether a Crawl-delay is stated, which RFC 9309 does not know: taken as a wish for one request at a time."""
        return self._rules is not None and bool(self._rules.crawl_delay(self._agent))


def decode_robots(body: bytes) -> str:
    return body[:MAX_BYTES].decode("utf-8-sig", errors="replace")


def _parse(text: str, agent: str) -> Any:
    if not text.strip():
        return None
    from protego import Protego

    # A list of thousands of agents above thousands of rules would make millions of both: all that are not us are one.
    return Protego.parse("\n".join(_without_others(line, agent) for line in text.splitlines()))


def _without_others(line: str, agent: str) -> str:
    match = _AGENT_LINE(line)
    if match is None:
        return line
    name = match[2].strip().lower()
    if name == "*" or name.replace("*", "") in agent:
        return line
    return match[1] + _NOT_US
