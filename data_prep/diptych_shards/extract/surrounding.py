"""Text out of markup: of a caption, and around a picture that has none."""

from __future__ import annotations

import re

from diptych_shards.extract import entities

REACH_BYTES = 1000
MAX_CHARACTERS = 300
MIN_CHARACTERS = 3

# What is opened and not closed runs to the end: every match takes in all that was searched, so time stays linear.
_UNSEEN = re.compile(rb"<(script|style|noscript)\b.*?(?:</\1[^>]*>?|\Z)|<!--.*?(?:-->|\Z)", re.DOTALL | re.IGNORECASE)
_BLOCK = re.compile(
    rb"</?(?:p|div|li|ul|ol|dl|dt|dd|td|th|tr|table|h[1-6]|section|article|aside|header|footer|main|nav|figure"
    rb"|figcaption|blockquote|pre|form|hr|body|html|head|title|option|select)(?=[\s/>])[^>]*(?:>|\Z)",
    re.IGNORECASE,
)
_BREAK = re.compile(rb"<(?:br|wbr|/?p|/?div|/?li|/?td)\b[^>]*(?:>|\Z)", re.IGNORECASE)
_ANY_TAG = re.compile(rb"<[^>]*>?")


def text_of(markup: bytes) -> str:
    """On one line."""
    if b"<" in markup:
        markup = _UNSEEN.sub(b" ", markup)
        markup = _BREAK.sub(b" ", markup)
        markup = _ANY_TAG.sub(b"", markup)
    return " ".join(entities.of_text(markup).split())


def surrounding_text(html: bytes, start: int, end: int) -> str:
    """Of the block that holds the markup from start to end, or else of the next block with text, if near."""
    before = _whole(html[max(0, start - REACH_BYTES) : start], cut_front=start > REACH_BYTES)
    after = html[end : end + REACH_BYTES]
    cut = after.rfind(b"<")
    if cut > after.rfind(b">"):
        after = after[:cut]
    blocks = [text_of(block) for block in _BLOCK.split(after)]
    own = f"{text_of(_BLOCK.split(before)[-1])} {blocks[0]}".strip()
    for text in (own, *blocks[1:]):
        if len(text) >= MIN_CHARACTERS:
            return text[:MAX_CHARACTERS].strip()
    return ""


def _whole(before: bytes, *, cut_front: bool) -> bytes:
    """Without the tail of a tag that began earlier."""
    if not cut_front:
        return before
    opened, closed = before.find(b"<"), before.find(b">")
    return before[closed + 1 :] if 0 <= closed < (opened if opened >= 0 else len(before)) else before
