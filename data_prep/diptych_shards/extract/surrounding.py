"""Text out of markup: of a caption, and around pictures that have none."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from typing import NamedTuple

from diptych_shards.extract import entities
from diptych_shards.extract.tags import EVERY, RAW_TEXT, end_of_raw_text, tags

REACH_BYTES = 1000
MAX_CHARACTERS = 300
MIN_CHARACTERS = 3

_BLOCKS = frozenset(
    b"p div li ul ol dl dt dd td th tr table h1 h2 h3 h4 h5 h6 section article aside header footer main nav figure "
    b"figcaption blockquote pre form hr body html head title option select".split()
)
_BREAKS = _BLOCKS | {b"br", b"wbr"}
# Between start tags: comments, end tags, and at the end of the page what begins as a tag and does not end.
_NO_TEXT = re.compile(
    rb"<!--(?:-?>|.*?(?:--!?>|\Z))|<(/[a-zA-Z][^\s/>]*)[^>]*(?:>|\Z)|<[/!?][^>]*(?:>|\Z)|<[a-zA-Z].*", re.DOTALL
)


class Part(NamedTuple):
    """A tag, or text."""

    start: int
    tag: bytes
    """Its name in lower case, a slash in front if it ends an element; empty for text."""
    text: bytes


def text_of(markup: bytes) -> str:
    """On one line."""
    return _joined([part.text if not part.tag else b" " for part in _seen(markup) if _is_break(part) or not part.tag])


def surrounding_texts(page: bytes, starts: list[int]) -> dict[int, str]:
    """What stands around pictures, by where their tags start: of the block they are in, or else of the next, if near.

    starts: ascending. Each costs as much as two kilobytes of page at most.
    """
    found: dict[int, str] = {}
    wanted = set(starts)
    block: list[tuple[int, bytes]] = []
    inside: list[int] = []
    waiting: list[int] = []
    for part in _seen(page):
        if part.start in wanted and part.tag:
            inside.append(part.start)
        elif not part.tag:
            block.append((part.start, part.text))
        elif part.tag.lstrip(b"/") in _BLOCKS:
            waiting = _told(block, inside, waiting, found)
            block, inside = [], []
        elif _is_break(part):
            block.append((part.start, b" "))
    _told(block, inside, waiting, found)
    return found


def _told(block: list[tuple[int, bytes]], inside: list[int], waiting: list[int], found: dict[int, str]) -> list[int]:
    """Give the pictures the block's text; the pictures that still wait for some."""
    if not block:
        return waiting + inside
    still = []
    for start in (*waiting, *inside):
        text = _near(block, start)
        if len(text) >= MIN_CHARACTERS:
            found[start] = text[:MAX_CHARACTERS].strip()
        elif block[-1][0] < start + REACH_BYTES:
            still.append(start)
    return still


def _near(block: list[tuple[int, bytes]], start: int) -> str:
    """The block's text within reach."""
    low, high = start - REACH_BYTES, start + REACH_BYTES
    pieces = []
    for position, text in block[max(0, bisect_right(block, (low,)) - 1) :]:
        if position >= high:
            break
        if position < low:
            _, _, text = text[low - position :].partition(b" ")  # what was cut may have been cut within a character
            position = low
        pieces.append(text if position + len(text) <= high else text[: high - position].rpartition(b" ")[0])
    return _joined(pieces)


def _joined(pieces: list[bytes]) -> str:
    return " ".join(entities.of_text(b"".join(pieces)).split())


def _is_break(part: Part) -> bool:
    return part.tag.lstrip(b"/") in _BREAKS


def _seen(page: bytes) -> Iterator[Part]:
    """The parts that a browser with scripts shows."""
    is_hidden = False
    for part in _parts(page):
        if part.tag.endswith(b"noscript"):
            is_hidden = part.tag == b"noscript"
        elif part.tag or not is_hidden:
            yield part


def _parts(page: bytes) -> Iterator[Part]:
    """Tags and texts in order; what stands in scripts and comments is neither."""
    position = 0
    for tag in tags(page, EVERY):
        yield from _between(page, position, tag.start)
        yield Part(tag.start, tag.name, b"")
        position = end_of_raw_text(page, tag) if tag.name in RAW_TEXT else tag.end
    yield from _between(page, position, len(page))


def _between(page: bytes, start: int, end: int) -> Iterator[Part]:
    for match in _NO_TEXT.finditer(page, start, end):
        if match.start() > start:
            yield Part(start, b"", page[start : match.start()])
        if match[1]:
            yield Part(match.start(), match[1].lower(), b"")
        start = match.end()
    if start < end:
        yield Part(start, b"", page[start:end])
