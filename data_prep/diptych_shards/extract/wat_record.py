"""Read the parts of a WAT record that pairs need, without parsing the rest of it.

Nine of ten links are not pictures, and most of a page's head is not about pictures. The parts are found as bytes, and
only they are parsed. A quote within a text is escaped, so `"path":"IMG@/src"` is never part of a text. In case
of doubt (a key that occurs twice, a brace within a text), the whole record is parsed.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

import orjson
from ahocorasick_rs import BytesAhoCorasick, MatchKind

_PICTURE_PATH = "IMG@/src"
_PICTURE, _LICENCE, _COMMONS = b'IMG@/src"', b'"license"', b"creativecommons.org"
_CONTAINER, _FILE, _OFFSET = b'"Container":{', b'"Filename":"', b'"Offset":"'
_HEADER, _TARGET = b'"WARC-Header-Metadata":{', b'"WARC-Target-URI":"'
_HEAD, _BASE, _TITLE, _METAS, _LINKS = b'"Head":{', b'"Base":"', b'"Title":"', b'"Metas":[', b'"Links":['
_NEEDLES = (_PICTURE, _LICENCE, _COMMONS, _HEAD, _BASE, _TITLE, _METAS, _LINKS)
_SEARCH = BytesAhoCorasick(_NEEDLES, matchkind=MatchKind.LeftmostFirst)
"""One pass finds all of them, in less time than `bytes.find` takes for one. The keys of the other mappings are not
among them: they are at the beginning of a record, where they are found at once."""
_BEFORE_PICTURE = b'{"path":"'
_END_OF_LIST = b"}]"
_WITHIN_TEXT = (b"\\", b":", b",", b"{")
"""After one of these, a quote may not be the end of a text."""
_TEXT = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"')
_HINTS_OF_METAS = (b"og:image", b"ang", b"reservation", b"RESERVATION")
"""What wanted metas contain, in any usual case: those of a picture, of the language, of a reservation."""
_ROBOTS = (b"robots", b"diptych")
_ESCAPE = b"\\u"
_HTTP, _HEADERS, _HTML = b'"HTTP-Response-Metadata"', b'"Headers":{', b'"HTML-Metadata"'
_HINTS_OF_HEADERS = (b"-robots-tag", b"tdm-reservation")
_HALF_PAIR = re.compile("[\ud800-\udfff]")


class WatError(ValueError):
    """The record does not belong to a WAT file."""


class WatRecord(NamedTuple):
    page_url: str
    base: str
    """Empty if there is none; so are the other texts."""
    title: str
    metas: list[dict[str, Any]]
    """The metas of the language, of `og:image` and of robots, perhaps others too."""
    pictures: list[dict[str, Any]]
    may_have_licence: bool
    """If so, the links of the whole record must be read."""
    warc_file: str
    offset: str


def is_of_page(block: bytes) -> bool:
    """Whether this is the record that describes the HTML of a page, one of the page's three."""
    return b'"HTML-Metadata"' in block


def read_record(block: bytes, directives: tuple[bytes, ...]) -> WatRecord:
    """Read the parts of a record.

    directives: words in lower case; a meta for robots is wanted only if it contains one of them.

    Raises:
        WatError: it is not JSON.
    """
    try:
        return _read_parts(block, directives)
    except ValueError:
        return _read_whole(block)


def parsed(block: bytes) -> dict[str, Any]:
    """Parse the whole record.

    Raises:
        WatError: it is not JSON.
    """
    try:
        record = orjson.loads(block)
    except ValueError:
        try:  # Python's parser reads half of a surrogate pair, bytes that are not UTF-8, and NaN too
            record = json.loads(block.decode("utf-8", "replace"))
            record = json.loads(_HALF_PAIR.sub("\ufffd", json.dumps(record, ensure_ascii=False)))
        except (ValueError, RecursionError) as error:
            raise WatError(f"not JSON: {error}") from None
    if not isinstance(record, dict):
        raise WatError("not a JSON object")
    return record


def headers_of(block: bytes) -> dict[str, list[str]]:
    """The lines of each HTTP header of the page, by name in lower case; empty if no header can forbid anything."""
    start = max(0, block.find(_HEADERS, max(0, block.find(_HTTP))))
    end = block.find(_HTML, start)
    some = block[start : end if end >= 0 else None].lower()
    if not any(hint in some for hint in _HINTS_OF_HEADERS):
        return {}
    payload = mapping_in(mapping_in(parsed(block), "Envelope"), "Payload-Metadata")
    found: dict[str, list[str]] = {}
    for name, value in mapping_in(mapping_in(payload, "HTTP-Response-Metadata"), "Headers").items():
        values = value if isinstance(value, list) else [value]
        found.setdefault(name.strip().lower(), []).extend(text for text in values if isinstance(text, str))
    return found


def html_metadata_of(record: dict[str, Any]) -> dict[str, Any]:
    payload = mapping_in(mapping_in(record, "Envelope"), "Payload-Metadata")
    return mapping_in(mapping_in(payload, "HTTP-Response-Metadata"), "HTML-Metadata")


def mapping_in(mapping: dict[str, Any], key: str) -> dict[str, Any]:
    value = mapping.get(key)
    return value if isinstance(value, dict) else {}


def mappings_in(mapping: dict[str, Any], key: str) -> list[dict[str, Any]]:
    values = mapping.get(key)
    return [value for value in values if isinstance(value, dict)] if isinstance(values, list) else []


def text_in(mapping: dict[str, Any], key: str) -> str:
    value = mapping.get(key)
    return value if isinstance(value, str) else ""


def _read_whole(block: bytes) -> WatRecord:
    record = parsed(block)
    metadata = html_metadata_of(record)
    head, container = mapping_in(metadata, "Head"), mapping_in(record, "Container")
    return WatRecord(
        text_in(mapping_in(mapping_in(record, "Envelope"), "WARC-Header-Metadata"), "WARC-Target-URI"),
        text_in(head, "Base"),
        text_in(head, "Title"),
        mappings_in(head, "Metas"),
        [link for link in mappings_in(metadata, "Links") if link.get("path") == _PICTURE_PATH],
        True,
        text_in(container, "Filename"),
        text_in(container, "Offset"),
    )


def _read_parts(block: bytes, directives: tuple[bytes, ...]) -> WatRecord:
    """Read the parts of a record, and parse only them.

    Raises:
        ValueError: the whole record must be parsed.
    """
    places, pictures, may_have_licence = _found_in(block)
    head, header, container = places.get(_HEAD, -1), block.find(_HEADER), block.find(_CONTAINER)
    page_url = _text_of(block, header, _end_of(block, _TARGET, header))
    if not page_url or not block.endswith(b"}"):
        raise ValueError("no whole record")
    metas = _metas(block, head, places.get(_METAS, -1), directives)
    return WatRecord(
        page_url,
        _text_of(block, head, places.get(_BASE, -1)),
        _text_of(block, head, places.get(_TITLE, -1)) if metas else "",
        metas,
        # A key replaces the path, because the rest starts with a comma.
        orjson.loads(b'[{"":0' + b',{"":0'.join(pictures) + b"]") if pictures else [],
        may_have_licence,
        _text_of(block, container, _end_of(block, _FILE, container)),
        _text_of(block, container, _end_of(block, _OFFSET, container)),
    )


def _found_in(block: bytes) -> tuple[dict[bytes, int], list[bytes], bool]:
    """Find where each key ends, what follows the path of each link to a picture, and whether a licence may be linked.

    Raises:
        ValueError: the whole record must be parsed.
    """
    places: dict[bytes, int] = {}
    pictures: list[bytes] = []
    may_have_licence = False
    last_key = b""
    for number, start, end in _SEARCH.find_matches_as_indexes(block):
        needle = _NEEDLES[number]
        if needle is _PICTURE:
            if last_key is not _LINKS or block[start - len(_BEFORE_PICTURE) : start] != _BEFORE_PICTURE:
                raise ValueError("no path of a link, or one that does not come first")
            pictures.append(block[end : block.find(b"}", end) + 1])
        elif needle is _LICENCE or needle is _COMMONS:
            may_have_licence = True
        elif needle in places:
            raise ValueError("a key that occurs twice")
        else:
            places[needle] = end
            last_key = needle
    return places, pictures, may_have_licence


def _metas(block: bytes, head: int, start: int, directives: tuple[bytes, ...]) -> list[dict[str, Any]]:
    if not 0 <= head < start or block[start : start + 1] == b"]":
        return []
    metas = block[start + 1 : block.find(_END_OF_LIST, start)]
    if metas[-1:] != b'"' or metas[-2:-1] in _WITHIN_TEXT:
        raise ValueError("an end of the list within a text")
    if not any(hint in metas for hint in _HINTS_OF_METAS) and not _may_forbid(metas.lower(), directives):
        return []
    found: list[dict[str, Any]] = orjson.loads(b"[{%b}]" % metas)
    return found


def _may_forbid(metas: bytes, directives: tuple[bytes, ...]) -> bool:
    """Whether some metas, in lower case, may state a directive to robots; an escape may hide anything."""
    if _ESCAPE in metas:
        return True
    return any(name in metas for name in _ROBOTS) and any(directive in metas for directive in directives)


def _end_of(block: bytes, key: bytes, mapping: int) -> int:
    """Where the text of the key starts, in the mapping that starts at `mapping`; -1 if there is none."""
    start = block.find(key, mapping) if mapping >= 0 else -1
    return start + len(key) if start >= 0 else -1


def _text_of(block: bytes, mapping: int, start: int) -> str:
    """The text that starts with the quote before `start`; empty if it is before the mapping."""
    if not 0 <= mapping < start:
        return ""
    text = _TEXT.match(block, start - 1)
    if text is None:
        raise ValueError("a text without end")
    found: str = orjson.loads(text[0])
    return found
