"""From a record of a WAT file to the pairs of its page.

A WAT holds `src`, `alt` and the head of a page; what only its HTML holds (`srcset`, lazy addresses, captions of
figures, sizes) is lost there.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import orjson

from diptych_shards.extract.licence import LicenceFinder
from diptych_shards.extract.options import ExtractOptions
from diptych_shards.extract.page import language_of, og_pictures
from diptych_shards.extract.pairs import Page, Picture, Reason, Source, pairs_of
from diptych_shards.extract.urls import Resolver


class WatError(ValueError):
    """The record does not hold what a WAT's record holds."""


def may_hold_pairs(block: bytes) -> bool:
    """Whether it is worth parsing: of a page's three records, one tells of the page."""
    return b"IMG@" in block or b"og:image" in block


def read_wat(
    block: bytes, options: ExtractOptions, dropped: Counter[Reason], max_links: int = 1_000_000
) -> tuple[Page, str | None, int | None]:
    """The pairs of the page, and the WARC file and the offset where its record stands, if told.

    Raises:
        WatError: it is no JSON, or not of a page.
    """
    record = _parsed(block)
    envelope = _mapping(record, "Envelope")
    answer = _mapping(_mapping(envelope, "Payload-Metadata"), "HTTP-Response-Metadata")
    metadata, head = _mapping(answer, "HTML-Metadata"), _mapping(_mapping(answer, "HTML-Metadata"), "Head")
    page_url = _text(_mapping(envelope, "WARC-Header-Metadata"), "WARC-Target-URI")
    page_url = page_url.removeprefix("<").removesuffix(">")
    links = _mappings(metadata, "Links")
    pictures: list[Picture] = []
    for link in links:
        if link.get("path") != "IMG@/src":
            continue
        if len(pictures) == options.max_pictures_per_page:
            dropped[Reason.TOO_MANY_PICTURES] += 1
            continue
        alt = link.get("alt")
        pictures.append(Picture(_text(link, "url"), ((alt, Source.ALT),) if alt and isinstance(alt, str) else ()))
    metas = _mappings(head, "Metas")
    og = [(_name(meta), _text(meta, "content")) for meta in metas if _name(meta).startswith("og:")]
    pictures += og_pictures(og, _text(head, "Title"))
    resolver = Resolver(page_url, _text(head, "Base") or None)
    pairs = pairs_of(pictures, resolver, options, dropped)
    licence = LicenceFinder()
    if pairs and LicenceFinder.may_find_in_json(block):
        for link in [*_mappings(head, "Link"), *links]:
            licence.see(_text(link, "rel"), _text(link, "url"))
    page = Page(page_url, _language(metas) if pairs else None, licence.found(resolver), pairs)
    container = _mapping(record, "Container")
    offset = str(container.get("Offset", ""))
    return page, _text(container, "Filename") or None, int(offset) if offset.isdecimal() else None


def _parsed(block: bytes) -> dict[str, Any]:
    try:
        return _as_mapping(orjson.loads(block))
    except ValueError:
        pass
    try:  # half of a surrogate pair, bytes that are not UTF-8, NaN: Python's parser is patient
        return _as_mapping(json.loads(block.decode("utf-8", "replace").encode("utf-8", "replace")))
    except (ValueError, RecursionError) as error:
        raise WatError(f"no JSON: {error}") from None


def _as_mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _mapping(mapping: dict[str, Any], key: str) -> dict[str, Any]:
    return _as_mapping(mapping.get(key))


def _mappings(mapping: dict[str, Any], key: str) -> list[dict[str, Any]]:
    values = mapping.get(key)
    return [value for value in values if isinstance(value, dict)] if isinstance(values, list) else []


def _text(mapping: dict[str, Any], key: str) -> str:
    value = mapping.get(key)
    return value if isinstance(value, str) else ""


def _name(meta: dict[str, Any]) -> str:
    return (_text(meta, "property") or _text(meta, "name")).strip().lower()


def _language(metas: list[dict[str, Any]]) -> str | None:
    for meta in metas:
        if _text(meta, "name").upper() == "HTML@/LANG":
            return language_of(_text(meta, "content"))
    for meta in metas:
        if _text(meta, "http-equiv").lower() == "content-language":
            return language_of(_text(meta, "content"))
    return None
