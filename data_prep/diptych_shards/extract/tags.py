"""Find the start and end tags of a page in one pass over its bytes, and the values of their attributes.

No tree is built. Every parser that builds one by the rules of HTML takes quadratic time on some pages: with 20,000 open
elements or attributes lexbor takes seconds, with a megabyte of them minutes. Pictures and captions need only one thing
from the tree: which `figure` and which `picture` is open. Each byte is read a bounded number of times.
"""

from __future__ import annotations

import html
import re
from collections.abc import Container, Generator, Iterator
from html.entities import html5
from typing import NamedTuple


class Tag(NamedTuple):
    name: bytes
    """In lower case; with a slash before the name of an end tag."""
    attributes: bytes
    start: int
    end: int


# Between quotes, > is part of a value. If a tag seems to end within quotes, group 3 is empty, and
# `_end_of_tag` reads it value by value. Only end tags of `figure`, `figcaption` and `picture` are found.
_TOKEN = re.compile(
    rb"""<(?:((?:/(?=[fpFP][iI]))?[a-zA-Z][^\s/>]*)([^>"']*(?:"[^">]*"[^>"']*|'[^'>]*'[^>"']*)*)(>?)"""
    rb"""|(!--)|[!?][^>]*>)"""
)
_PART_OF_TAG = re.compile(rb"""[^>=]*(?:(>)|=\s*(?:"[^"]*"|'[^']*'|[^\s>"'][^\s>]*|(?=>)))""")
_ATTRIBUTE = re.compile(rb"""([^\s/>=][^\s/>=]*)(?:\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s>"'][^\s>]*)))?""")
_COMMENT_END = re.compile(rb"--!?>")
_REFERENCE = re.compile(r"&(?:#[0-9]{1,7};?|#[xX][0-9a-fA-F]{1,6};?|[a-zA-Z][a-zA-Z0-9]{1,31}(?:;|(?![=a-zA-Z0-9])))")
RAW_TEXT = {
    name: re.compile(rb"</" + b"".join(b"[%c%c]" % (c, c - 32) for c in name) + rb"(?=[\s/>])")
    for name in (b"script", b"style", b"textarea", b"title", b"xmp", b"iframe", b"noembed", b"noframes")
}


class _Every:
    def __contains__(self, name: object) -> bool:
        return True


EVERY = _Every()
"""All start tags, and those end tags that are found."""


def tags(page: bytes, wanted: Container[bytes]) -> Iterator[Tag]:
    """Yield the tags of these names, in order, outside comments and scripts. page: UTF-8 without NUL."""
    position = 0
    while position >= 0:
        position = yield from _tags_from(page, position, wanted)


def attributes_of(tag: Tag) -> dict[bytes, bytes]:
    """The attributes by name in lower case, the first of equal names; values still contain character references."""
    found: dict[bytes, bytes] = {}
    for name, double, single, bare in _ATTRIBUTE.findall(tag.attributes):
        found.setdefault(name.lower(), double or single or bare)
    return found


def value(attributes: dict[bytes, bytes], name: bytes) -> str:
    """The value of an attribute, as a reader sees it; empty if there is none."""
    raw = attributes.get(name)
    return unescape_attribute(raw) if raw else ""


def unescape_attribute(value: bytes) -> str:
    """Replace the character references in the value of an attribute.

    `?a=1&copy=2` has none: a reference without a semicolon has no letter or `=` after it.
    """
    text = value.decode("utf-8", "replace")
    return _REFERENCE.sub(_character, text) if "&" in text else text


def unescape_text(value: bytes) -> str:
    """Replace the character references in text."""
    text = value.decode("utf-8", "replace")
    return html.unescape(text) if "&" in text else text


def _character(match: re.Match[str]) -> str:
    if match[0][1] == "#":
        return html.unescape(match[0])
    return html5.get(match[0][1:], match[0])


def raw_text_after(page: bytes, tag: Tag) -> bytes:
    """The text between the start tag of a `title` or the like and its end tag; empty if there is no end tag."""
    end = RAW_TEXT[tag.name].search(page, tag.end)
    return page[tag.end : end.start() if end else tag.end]


def end_of_raw_text(page: bytes, tag: Tag) -> int:
    """Where the end tag of a `title` or the like starts; the end of the page if there is none."""
    end = RAW_TEXT[tag.name].search(page, tag.end)
    return end.start() if end else len(page)


def _tags_from(page: bytes, position: int, wanted: Container[bytes]) -> Generator[Tag, None, int]:
    """Yield tags up to something that is skipped as a whole; return where to continue, or -1 at the end."""
    for match in _TOKEN.finditer(page, position):
        name = match[1]
        if name is None:
            if match[4] and not page.startswith((b">", b"->"), match.end()):
                end = _COMMENT_END.search(page, match.end())
                return end.end() if end else -1
            continue
        name = name.lower()
        is_raw = name in RAW_TEXT
        if match[3] and not is_raw:
            if name in wanted:
                yield Tag(name, match[2], match.start(), match.end())
            continue
        end_of_tag = match.end() if match[3] else _end_of_tag(page, match.end(1))
        if end_of_tag < 0:
            return -1  # a tag without an end is not a tag
        if name in wanted:
            yield Tag(name, page[match.end(1) : end_of_tag - 1], match.start(), end_of_tag)
        if not is_raw:
            return end_of_tag
        end = RAW_TEXT[name].search(page, end_of_tag)
        return end.start() if end else -1
    return -1


def _end_of_tag(page: bytes, position: int) -> int:
    while True:
        part = _PART_OF_TAG.match(page, position)
        if part is None:
            return -1
        if part[1]:
            return part.end()
        position = part.end()
