"""Take text out of markup: the text of a caption, and the text around pictures without one."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from itertools import chain

from diptych_shards.extract.tags import EVERY, RAW_TEXT, Tag, end_of_raw_text, tags, unescape_text

REACH_BYTES = 1000
MAX_CHARACTERS = 300
MIN_CHARACTERS = 3

_BLOCKS = frozenset(
    b"p div li ul ol dl dt dd td th tr table h1 h2 h3 h4 h5 h6 section article aside header footer main nav figure "
    b"figcaption blockquote pre form hr body html head title option select".split()
)
_BLOCK_TAGS = _BLOCKS | {b"/" + name for name in _BLOCKS}
_BREAKS = _BLOCK_TAGS | {b"br", b"/br", b"wbr", b"/wbr"}
# Markup between start tags: comments, end tags, and a tag that the page ends within.
_NO_TEXT = re.compile(
    rb"<!--(?:-?>|.*?(?:--!?>|\Z))|<(/[a-zA-Z][^\s/>]*)[^>]*(?:>|\Z)|<[/!?][^>]*(?:>|\Z)|<[a-zA-Z].*", re.DOTALL
)


Part = tuple[int, bytes, bytes]
"""Where it starts; the name of a tag in lower case (with a slash before that of an end tag), or empty; the text."""


def text_of(markup: bytes) -> str:
    """The text of the markup, on one line."""
    return _joined([b" " if tag else text for _, tag, text in _seen(markup) if not tag or tag in _BREAKS])


def surrounding_texts(page: bytes, starts: list[int]) -> dict[int, str]:
    """Find the text around pictures: the text of their block, or of the next block if that is near.

    starts: where the tags of the pictures start, ascending; they are the keys of the result. A picture costs at most
    as much as two kilobytes of page.
    """
    found: dict[int, str] = {}
    wanted = set(starts)
    out_of_reach = starts[-1] + REACH_BYTES
    block: list[tuple[int, bytes]] = []
    inside: list[int] = []
    waiting: list[int] = []
    for start, tag, text in _seen(page):
        if start >= out_of_reach:
            break
        if not tag:
            block.append((start, text))
        elif tag in _BLOCK_TAGS:
            if block:
                waiting = _give(block, inside, waiting, found)
                block, inside = [], []
        elif start in wanted:
            inside.append(start)
        elif tag in _BREAKS:
            block.append((start, b" "))
    if block:
        _give(block, inside, waiting, found)
    return found


def _give(block: list[tuple[int, bytes]], inside: list[int], waiting: list[int], found: dict[int, str]) -> list[int]:
    """Give the pictures the text of the block; return those that still wait for a text."""
    still = []
    for start in (*waiting, *inside):
        text = _near(block, start)
        if len(text) >= MIN_CHARACTERS:
            found[start] = text[:MAX_CHARACTERS].strip()
        elif block[-1][0] < start + REACH_BYTES:
            still.append(start)
    return still


def _near(block: list[tuple[int, bytes]], start: int) -> str:
    """The text of the block that is near the picture."""
    low, high = start - REACH_BYTES, start + REACH_BYTES
    pieces = []
    for position, text in block[max(0, bisect_right(block, (low,)) - 1) :]:
        if position >= high:
            break
        if position < low:
            _, _, text = text[low - position :].partition(b" ")  # the cut may be within a character
            position = low
        pieces.append(text if position + len(text) <= high else text[: high - position].rpartition(b" ")[0])
    return _joined(pieces)


def _joined(pieces: list[bytes]) -> str:
    return " ".join(unescape_text(b"".join(pieces)).split())


def _seen(page: bytes) -> Iterator[Part]:
    """Yield tags and texts as a browser with scripts shows them: without scripts and comments."""
    position, is_hidden = 0, False
    for tag in chain(tags(page, EVERY), (Tag(b"", b"", len(page), len(page)),)):
        name, _, start, end = tag
        if position < start:
            for part in _between(page, position, start):
                is_hidden = is_hidden and part[1] != b"/noscript"
                if part[1] or not is_hidden:
                    yield part
        yield start, name, b""
        is_hidden = is_hidden or name == b"noscript"
        position = end_of_raw_text(page, tag) if name in RAW_TEXT else end


def _between(page: bytes, start: int, end: int) -> Iterator[Part]:
    for match in _NO_TEXT.finditer(page, start, end):
        if match.start() > start:
            yield start, b"", page[start : match.start()]
        if match[1]:
            yield match.start(), match[1].lower(), b""
        start = match.end()
    if start < end:
        yield start, b"", page[start:end]
