"""Status and headers of an answer: only those that matter here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_STATUS_LINE = re.compile(rb"HTTP/[0-9.]+ +([2-9][0-9]{2})\b").match
_BLANK = (b"\r\n", b"\n")
_WANTED = re.compile(
    rb"(?im)^(x-robots-tag|tdm-reservation|content-encoding|content-length|location|retry-after)"
    rb"[ \t]*:[ \t]*(.*?)[ \t\r]*$"
)


@dataclass(frozen=True)
class Headers:
    """Values as they came, without white space around them."""

    location: str | None
    retry_after: str | None
    content_encoding: str
    """In lower case; empty if there is none."""
    content_length: int | None
    robots_tags: Sequence[str]
    tdm_reservation: str
    """Empty if there is none."""


def read_headers(lines: Sequence[bytes]) -> tuple[int, Headers] | None:
    """Status and headers of the last block of these lines, since that of 103 Early Hints is before; None if cut off."""
    start = len(lines) - 1
    while start > 0 and not (lines[start][:5] == b"HTTP/" and lines[start - 1] in _BLANK):
        start -= 1
    block = lines[start:] if lines else [b""]
    status = _STATUS_LINE(block[0])
    if status is None or not any(line in _BLANK for line in block):
        return None
    values: dict[bytes, list[str]] = {}
    for name, value in _WANTED.findall(b"".join(block)):
        values.setdefault(name.lower(), []).append(_text(value))
    length = values.get(b"content-length", [""])[-1]
    return int(status[1]), Headers(
        location=values.get(b"location", [None])[0],
        retry_after=values.get(b"retry-after", [None])[0],
        content_encoding=",".join(values.get(b"content-encoding", [])).lower().strip(),
        content_length=int(length) if length.isascii() and length.isdigit() and len(length) < 20 else None,
        robots_tags=values.get(b"x-robots-tag", []),
        tdm_reservation=values.get(b"tdm-reservation", [""])[-1],
    )


def _text(value: bytes) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value.decode("latin-1")
