"""The part of a WAT's record that matters, without parsing the rest of it.

Nine links of ten are no pictures. Those are cut out of the JSON as bytes; since a cut in the wrong place leaves no
JSON, a record that still parses was cut rightly, and any other is parsed whole.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import orjson

PICTURE_PATH = "IMG@/src"

_LINKS = b'"Links":['
_END_OF_LINKS = b"}]"
_PICTURE = b'"IMG@/src"'
_HAS_ALT, _HAS_EMPTY_ALT = b'"alt":"', b'"alt":""'


class WatError(ValueError):
    """The record does not hold what a WAT's record holds."""


def may_hold_pairs(block: bytes) -> bool:
    """Whether it is worth parsing: of a page's three records, one tells of the page."""
    return b"IMG@" in block or b"og:image" in block


class PictureLinks(NamedTuple):
    with_alt: list[dict[str, Any]]
    num_without: int


def parsed(block: bytes) -> tuple[dict[str, Any], PictureLinks]:
    """The record, and its links to pictures; the record's own list of links may be empty.

    Raises:
        WatError: it is no JSON.
    """
    start = block.find(_LINKS) + len(_LINKS)
    end = block.find(_END_OF_LINKS, start)
    if start >= len(_LINKS) and end >= 0:
        try:
            return orjson.loads(block[:start] + block[end + 1 :]), _picture_links(block, start, end + 1)
        except ValueError:
            pass
    record = parsed_whole(block)
    links = [link for link in links_of(record) if link.get("path") == PICTURE_PATH]
    with_alt = [link for link in links if link.get("alt")]
    return record, PictureLinks(with_alt, len(links) - len(with_alt))


def parsed_whole(block: bytes) -> dict[str, Any]:
    """The record with all its links.

    Raises:
        WatError: it is no JSON.
    """
    try:
        record = orjson.loads(block)
    except ValueError:
        try:  # half of a surrogate pair, bytes that are not UTF-8, NaN: Python's parser is patient
            record = json.loads(block.decode("utf-8", "replace"))
        except (ValueError, RecursionError) as error:
            raise WatError(f"no JSON: {error}") from None
    if not isinstance(record, dict):
        raise WatError("no JSON object")
    return record


def html_metadata_of(record: dict[str, Any]) -> dict[str, Any]:
    payload = mapping_in(mapping_in(record, "Envelope"), "Payload-Metadata")
    return mapping_in(mapping_in(payload, "HTTP-Response-Metadata"), "HTML-Metadata")


def links_of(record: dict[str, Any]) -> list[dict[str, Any]]:
    return mappings_in(html_metadata_of(record), "Links")


def mapping_in(mapping: dict[str, Any], key: str) -> dict[str, Any]:
    value = mapping.get(key)
    return value if isinstance(value, dict) else {}


def mappings_in(mapping: dict[str, Any], key: str) -> list[dict[str, Any]]:
    values = mapping.get(key)
    return [value for value in values if isinstance(value, dict)] if isinstance(values, list) else []


def text_in(mapping: dict[str, Any], key: str) -> str:
    value = mapping.get(key)
    return value if isinstance(value, str) else ""


def _picture_links(block: bytes, start: int, end: int) -> PictureLinks:
    """Of the list that stands there."""
    with_alt = []
    num_without = 0
    position = block.find(_PICTURE, start, end)
    while position >= 0:
        closing = block.find(b"}", position, end)
        link = block[block.rfind(b"{", start, position) : closing + 1]
        if _HAS_ALT in link and _HAS_EMPTY_ALT not in link:
            with_alt.append(link)
        else:
            num_without += 1
        start = closing if closing >= 0 else end
        position = block.find(_PICTURE, start, end)
    found = orjson.loads(b"[" + b",".join(with_alt) + b"]") if with_alt else []
    return PictureLinks([link for link in found if link.get("path") == PICTURE_PATH], num_without)
