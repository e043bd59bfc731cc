"""What matters of a WAT's record, without parsing the rest of it.

Nine links of ten are no pictures, and most of a page's head says nothing of pictures. What is wanted is looked for as
bytes, and only that is parsed. Between quotes a quote is escaped, so `"path":"IMG@/src"` is no text. Where the bytes
leave a doubt (a key that occurs twice, a brace within a text), the record is parsed whole.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

import orjson

_PICTURE_PATH = "IMG@/src"
_PICTURE = re.compile(rb'IMG@/src"(?:(?<=\{"path":"IMG@/src")([^}]*\}))?')
"""What follows the path of a link to a picture; nothing if it is no path, or does not come first. What begins with a
rare byte is found in two thirds of the time."""
_CONTAINER, _HEADER, _HEAD = b'"Container":{', b'"WARC-Header-Metadata":{', b'"Head":{'
_LINKS, _METAS, _END_OF_LIST = b'"Links":[', b'"Metas":[', b"}]"
_WITHIN_TEXT = (b"\\", b":", b",", b"{")
"""Where these stand before a quote, it does not end a text, or may not."""
_TEXT = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"')
_HALF_PAIR = re.compile("[\ud800-\udfff]")


class WatError(ValueError):
    """The record does not hold what a WAT's record holds."""


class WatRecord(NamedTuple):
    page_url: str
    base: str
    """Empty, as the others, if there is none."""
    title: str
    metas: list[dict[str, Any]]
    """Those of the language and of `og:image`, perhaps others."""
    pictures: list[dict[str, Any]]
    may_have_licence: bool
    """Then the links of the whole record are worth a look."""
    warc_file: str
    offset: str


def is_of_page(block: bytes) -> bool:
    """Of a page's three records, one tells of its HTML."""
    return b'"HTML-Metadata"' in block


def read_record(block: bytes) -> WatRecord:
    """What is in the record.

    Raises:
        WatError: it is no JSON.
    """
    try:
        return _read_parts(block)
    except ValueError:
        return _read_whole(block)


def parsed(block: bytes) -> dict[str, Any]:
    """The record with all its lists.

    Raises:
        WatError: it is no JSON.
    """
    try:
        record = orjson.loads(block)
    except ValueError:
        try:  # half of a surrogate pair, bytes that are not UTF-8, NaN: Python's parser is patient
            record = json.loads(block.decode("utf-8", "replace"))
            record = json.loads(_HALF_PAIR.sub("\ufffd", json.dumps(record, ensure_ascii=False)))
        except (ValueError, RecursionError) as error:
            raise WatError(f"no JSON: {error}") from None
    if not isinstance(record, dict):
        raise WatError("no JSON object")
    return record


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


def _read_parts(block: bytes) -> WatRecord:
    """The same.

    Raises:
        ValueError: it takes the whole record to tell.
    """
    links, end_of_links = _span_of_links(block)
    pictures = _PICTURE.findall(block, links, end_of_links)
    if b"" in pictures:
        raise ValueError("a path that does not come first")
    rest = block[:links] + block[end_of_links:]
    head, header, container = rest.find(_HEAD), rest.find(_HEADER), rest.find(_CONTAINER)
    page_url = _text_of(rest, b'"WARC-Target-URI":"', header)
    if header < 0 or not page_url or not block.endswith(b"}"):
        raise ValueError("no whole record")
    metas = _metas(rest, head)
    return WatRecord(
        page_url,
        _text_of(rest, b'"Base":"', head),
        _text_of(rest, b'"Title":"', head) if metas else "",
        metas,
        # A key in place of the path, so that what follows it may begin with a comma.
        orjson.loads(b'[{"":0' + b',{"":0'.join(pictures) + b"]") if pictures else [],
        rest.find(b'"license"', head) >= 0 or block.find(b"creativecommons.org", links, end_of_links) >= 0,
        _text_of(rest, b'"Filename":"', container),
        _text_of(rest, b'"Offset":"', container),
    )


def _span_of_links(block: bytes) -> tuple[int, int]:
    """Where they stand between their brackets. The list is long: nobody walks over it to find its end."""
    start = block.find(_LINKS) + len(_LINKS)
    if start < len(_LINKS):
        return 0, 0
    head = -1 if block.find(_HEAD, 0, start) >= 0 else block.rfind(_HEAD, start)
    end = block.rfind(_END_OF_LIST, start, head if head >= 0 else len(block)) + 1
    return start, max(start, end)


def _metas(rest: bytes, head: int) -> list[dict[str, Any]]:
    start = rest.find(_METAS, head) + len(_METAS)
    if head < 0 or start < len(_METAS) or rest[start : start + 1] == b"]":
        return []
    metas = rest[start + 1 : rest.find(_END_OF_LIST, start)]
    if metas[-1:] != b'"' or metas[-2:-1] in _WITHIN_TEXT:
        raise ValueError("an end of the list within a text")
    has_og = b"og:image" in metas  # the other tags speak of it
    if not has_og and b"ang" not in metas:
        return []
    kept = [b"{%b}" % meta for meta in metas.split(b"},{") if b"ang" in meta or has_og and b"og:" in meta]
    found: list[dict[str, Any]] = orjson.loads(b"[%b]" % b",".join(kept))
    return found


def _text_of(rest: bytes, key: bytes, mapping: int) -> str:
    """What the key says in the mapping that begins there, or in one behind it; empty if there is none."""
    start = rest.find(key, mapping)
    if start < 0 or mapping < 0:
        return ""
    text = _TEXT.match(rest, start + len(key) - 1)
    if text is None:
        raise ValueError("a text without end")
    found: str = orjson.loads(text[0])
    return found
