"""Find the pairs of a page in its record of a WAT file.

A WAT contains `src`, `alt` and the head of a page, but not the rest of its HTML (`srcset`, lazy addresses,
captions of figures, sizes).
"""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

from diptych_shards.extract.options import ExtractOptions
from diptych_shards.extract.page import language_of, og_pictures
from diptych_shards.extract.pairs import Captions, CaptionSource, DropReason, FoundPage, Page, pairs_of
from diptych_shards.extract.rights import LicenceFinder, OptOuts
from diptych_shards.extract.wat_record import (
    WatRecord,
    headers_of,
    html_metadata_of,
    mapping_in,
    mappings_in,
    parsed,
    read_record,
    text_in,
)
from diptych_shards.fetch.permission import RESERVATION
from diptych_shards.web_address import BaseUrl


def read_wat(block: bytes, options: ExtractOptions, dropped: Counter[DropReason]) -> FoundPage:
    """Find the pairs of one record.

    Raises:
        WatError: it is not JSON.
    """
    record = read_record(block, options.stated_opt_outs)
    headers = headers_of(block)
    opt_outs = OptOuts(headers.get("x-robots-tag", ()), *headers.get(RESERVATION, ())[:1])
    metas = _Metas.of(record.metas, opt_outs) if record.metas else _NO_METAS
    pictures = _pictures(record, options, dropped)
    if metas.og:
        pictures += og_pictures(metas.og, record.title)
    page_url = record.page_url.removeprefix("<").removesuffix(">")
    base_url = BaseUrl(page_url, record.base or None)
    pairs = pairs_of(pictures, base_url, options, dropped)
    licence_url = _licence_of(block, base_url) if pairs and record.may_have_licence else None
    return FoundPage(
        Page(page_url, metas.language, licence_url, pairs, opt_outs.found(options.opt_outs) if pairs else ()),
        record.warc_file or None,
        int(record.offset) if record.offset.isdecimal() else None,
    )


_PictureFields = tuple[str, Captions, int | None, int | None]


class _Metas(NamedTuple):
    og: list[tuple[str, str]]
    language: str | None

    @classmethod
    def of(cls, metas: list[dict[str, Any]], opt_outs: OptOuts) -> _Metas:
        og: list[tuple[str, str]] = []
        html_lang = content_language = ""
        for meta in metas:
            name = meta.get("property") or meta.get("name")
            if not isinstance(name, str):
                if text_in(meta, "http-equiv").lower() == "content-language":
                    content_language = content_language or text_in(meta, "content")
            elif name[:3].lower() == "og:":
                og.append((name.strip().lower(), text_in(meta, "content")))
            elif name == "HTML@/lang":
                html_lang = html_lang or text_in(meta, "content")
            else:
                opt_outs.see_meta(name.strip().lower(), text_in(meta, "content"))
        return cls(og, language_of(html_lang) or language_of(content_language))


_NO_METAS = _Metas([], None)


def _pictures(record: WatRecord, options: ExtractOptions, dropped: Counter[DropReason]) -> list[_PictureFields]:
    links = record.pictures[: options.max_pictures_per_page]
    if len(links) < len(record.pictures):
        dropped[DropReason.TOO_MANY_PICTURES] += len(record.pictures) - len(links)
    pictures: list[_PictureFields] = []
    for link in links:
        alt, url = link.get("alt"), link.get("url")
        if isinstance(alt, str) and alt:
            pictures.append((url if isinstance(url, str) else "", ((alt, CaptionSource.ALT),), None, None))
    dropped[DropReason.NO_CAPTION] += len(links) - len(pictures)
    return pictures


def _licence_of(block: bytes, base_url: BaseUrl) -> str | None:
    metadata = html_metadata_of(parsed(block))
    licence = LicenceFinder()
    for link in [*mappings_in(mapping_in(metadata, "Head"), "Link"), *mappings_in(metadata, "Links")]:
        licence.see(text_in(link, "rel"), text_in(link, "url"))
    return licence.found(base_url)
