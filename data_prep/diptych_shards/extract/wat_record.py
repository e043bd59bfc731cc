"""What matters of a WAT's record, without parsing the rest of it.

Nine links of ten are no pictures, and most of a page's head says nothing of pictures. Such parts are cut out of the
JSON as bytes. A cut in the wrong place (brackets within a text) leaves what is no JSON; then the record is parsed
whole.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

import orjson

_PICTURE_PATH = "IMG@/src"
_PICTURE = b'"path":"IMG@/src"'
_HEAD = b'"Head":{'
_LINKS, _METAS, _HEAD_LINKS, _SCRIPTS = b'"Links":[', b'"Metas":[', b'"Link":[', b'"Scripts":['
_END_OF_LIST = b"}]"
_HAS_ALT, _HAS_EMPTY_ALT = b'"alt":"', b'"alt":""'


_HALF_PAIR = re.compile("[\ud800-\udfff]")


class WatError(ValueError):
    """The record does not hold what a WAT's record holds."""


class WatRecord(NamedTuple):
    rest: dict[str, Any]
    """The record; its lists may be empty."""
    metas: list[dict[str, Any]]
    """Those of the Open Graph and of the language, perhaps others."""
    pictures: list[dict[str, Any]]
    """Links to pictures that have an alt."""
    num_without_alt: int
    may_have_licence: bool
    """Then the links of the whole record are worth a look."""


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
    links = [link for link in mappings_in(metadata, "Links") if link.get("path") == _PICTURE_PATH]
    with_alt = [link for link in links if link.get("alt")]
    metas = mappings_in(mapping_in(metadata, "Head"), "Metas")
    return WatRecord(record, metas, with_alt, len(links) - len(with_alt), True)


def _read_parts(block: bytes) -> WatRecord:
    rest, links = _without_links(block)
    may_have_licence = b'"license"' in rest or b"creativecommons.org" in links
    rest, metas = _without_list(rest, _METAS)
    rest, _ = _without_list(rest, _HEAD_LINKS)
    rest, _ = _without_list(rest, _SCRIPTS)
    record = orjson.loads(rest)
    if not isinstance(record, dict):
        raise ValueError("no JSON object")
    kept_metas = [b"{%b}" % meta for meta in metas[2:-2].split(b"},{") if b"og:" in meta or b"ang" in meta]
    with_alt, num_without_alt = _pictures(links)
    return WatRecord(
        record,
        orjson.loads(b"[" + b",".join(kept_metas) + b"]") if kept_metas else [],
        # A key in place of the path, so that what follows it may begin with a comma.
        orjson.loads(b'[{"":0' + b',{"":0'.join(with_alt) + b"]") if with_alt else [],
        num_without_alt,
        may_have_licence,
    )


def _pictures(links: bytes) -> tuple[list[bytes], int]:
    """Of those with an alt what follows the path; and how many have none.

    Raises:
        ValueError: that is not clear from the bytes.
    """
    with_alt = []
    pieces = links.split(_PICTURE)
    if not all(piece.endswith(b"{") for piece in pieces[:-1]):
        raise ValueError("a path that does not come first")
    for piece in pieces[1:]:
        end = piece.find(b"}") + 1
        picture = piece[:end]
        if _HAS_ALT in picture and _HAS_EMPTY_ALT not in picture:
            with_alt.append(picture)
        elif piece[end - 2 : end] != b'"}' or piece[end - 3] in b"\\:,{":
            raise ValueError("a brace within a text")  # it will not be parsed, so it is looked at here
    return with_alt, len(pieces) - 1 - len(with_alt)


def _without_links(block: bytes) -> tuple[bytes, bytes]:
    """The record with an empty list of links, and the list. The list is long: nobody walks over it to find its end."""
    start = block.find(_LINKS) + len(_LINKS)
    if start < len(_LINKS):
        return block, b""
    if block.find(_HEAD, 0, start) >= 0:
        head = len(block)
    else:
        head = block.rfind(_HEAD, start)
    end = block.rfind(_END_OF_LIST, start, head if head >= 0 else len(block)) + 2
    return (block[:start] + block[end - 1 :], block[start - 1 : end]) if end > 1 else (block, b"")


def _without_list(rest: bytes, name: bytes) -> tuple[bytes, bytes]:
    start = rest.find(name) + len(name)
    end = rest.find(_END_OF_LIST, start) + 2
    if start < len(name) or end < 2 or rest[start : start + 1] == b"]":
        return rest, b""
    return rest[:start] + rest[end - 1 :], rest[start - 1 : end]
