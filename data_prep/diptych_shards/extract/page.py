"""Find the pictures of an HTML page, and their captions."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

from diptych_shards.extract.image_element import Copy, Image, ImageCandidate, best_candidate, copy_of, image_of, largest
from diptych_shards.extract.options import ExtractOptions
from diptych_shards.extract.page_text import surrounding_texts, text_of
from diptych_shards.extract.pairs import Captions, CaptionSource, DropReason, Page, Picture, pairs_of
from diptych_shards.extract.rights import LicenceFinder, OptOuts
from diptych_shards.extract.tags import Tag, attributes_of, raw_text_after, tags, unescape_text, value
from diptych_shards.web_address import BaseUrl

MAX_FIGCAPTION_BYTES = 16_384
MAX_OPEN_FIGURES = 64
MAX_SOURCES = 32
MAX_OG_PICTURES = 8

_ALWAYS = frozenset(
    b"html base meta title img amp-img picture /picture source figure /figure figcaption /figcaption svg".split()
)
_WITH_LINKS = _ALWAYS | {b"a", b"link"}
_HAS_PICTURE = re.compile(rb"<im[gG]|<I[mM][gG]|og(?::|&#x3A;)image|<amp-img")
_NUMBER = re.compile(rb"\s*(\d{1,5})(?:\.\d*)?\s*(?:px)?\s*")
_LANGUAGE = re.compile(r"[a-zA-Z]{2,3}(?:-[a-zA-Z0-9]{1,8}){0,4}")
_NOT_PHOTOGRAPHS = ("image/svg", "image/avif", "image/jxl")


def read_page(
    html: bytes,
    page_url: str,
    language: str | None,
    options: ExtractOptions,
    dropped: Counter[DropReason],
    opt_outs: OptOuts | None = None,
) -> Page:
    """Find the pairs of a page in UTF-8.

    language: the language of the HTTP header, for pages that do not name one.
    opt_outs: what the HTTP headers forbid.
    """
    if not _HAS_PICTURE.search(html):
        return Page(page_url, None, None, {})
    html = html.replace(b"\0", b"")
    reader = _Reader(html, options, dropped, opt_outs or OptOuts())
    for tag in tags(html, _WITH_LINKS if LicenceFinder.may_find(html) else _ALWAYS):
        reader.read(tag)
    base_url = BaseUrl(page_url, reader.base_href)
    return Page(
        page_url,
        reader.language or reader.content_language or language,
        reader.licence.found(base_url),
        pairs_of(reader.all_pictures(), base_url, options, dropped),
        reader.opt_outs.found(options.opt_outs),
    )


@dataclass
class _Figure:
    pictures: list[int] = field(default_factory=list)
    caption: str = ""
    caption_start: int | None = None


class _Reader:
    """Collects the content of the tags of a page."""

    def __init__(self, html: bytes, options: ExtractOptions, dropped: Counter[DropReason], opt_outs: OptOuts):
        self.base_href: str | None = None
        self.language: str | None = None
        self.content_language: str | None = None
        self.licence = LicenceFinder()
        self.opt_outs = opt_outs
        self._html = html
        self._options = options
        self._dropped = dropped
        self._pictures: list[Picture] = []
        self._starts: list[int] = []
        """Where the tags of the pictures start."""
        self._last_image: Image | None = None
        self._title: str | None = None
        self._og: list[tuple[str, str]] = []
        self._figures: list[_Figure] = []
        self._figures_too_deep = 0
        self._sources: list[Tag] | None = None
        self._read = {
            b"img": self._read_img,
            b"amp-img": self._read_img,
            b"source": self._read_source,
            b"picture": lambda tag: self._open_picture([]),
            b"/picture": lambda tag: self._open_picture(None),
            b"figure": self._open_figure,
            b"/figure": self._close_figure,
            b"figcaption": self._open_figcaption,
            b"/figcaption": self._close_figcaption,
            b"meta": self._read_meta,
            b"title": self._read_title,
            b"svg": self._end_of_head,
            b"base": self._read_base,
            b"html": self._read_html,
            b"a": self._read_link,
            b"link": self._read_link,
        }

    def read(self, tag: Tag) -> None:
        self._read[tag.name](tag)

    def all_pictures(self) -> list[Picture]:
        if self._options.surrounding_text:
            self._take_surrounding_texts()
        return [*self._pictures, *og_pictures(self._og, self._title or "")]

    def _take_surrounding_texts(self) -> None:
        bare = [number for number, picture in enumerate(self._pictures) if not picture.captions]
        texts = surrounding_texts(self._html, [self._starts[number] for number in bare]) if bare else {}
        for number in bare:
            text = texts.get(self._starts[number])
            if text:
                self._pictures[number] = self._pictures[number]._replace(captions=((text, CaptionSource.SURROUNDING),))

    def _read_img(self, tag: Tag) -> None:
        if len(self._pictures) >= self._options.max_pictures_per_page:
            self._dropped[DropReason.TOO_MANY_PICTURES] += 1
            return
        attributes = attributes_of(tag)
        image, before = image_of(tag.start, tag.end, attributes), self._last_image
        self._last_image = image
        captions: Captions = ((value(attributes, b"alt"), CaptionSource.ALT),) if image.alt else ()
        picture = picture_of(attributes, captions, [one for tag in self._sources or () for one in _of_source(tag)])
        self._sources = None
        useless = copy_of(self._html, before, image) if before else None
        if useless is None:
            if self._figures:
                self._figures[-1].pictures.append(len(self._pictures))
            self._starts.append(tag.start)
            self._pictures.append(picture)
            return
        self._dropped[DropReason.COPY] += 1
        self._last_image = None  # its copy was found
        other = self._pictures[-1]
        kept = picture if useless is Copy.FIRST else other
        self._pictures[-1] = kept._replace(captions=other.captions if before and before.alt else captions)

    def _read_source(self, tag: Tag) -> None:
        if self._sources is not None and len(self._sources) < MAX_SOURCES:
            self._sources.append(tag)  # read when an image follows

    def _open_picture(self, sources: list[Tag] | None) -> None:
        self._sources = sources

    def _open_figure(self, tag: Tag) -> None:
        if len(self._figures) < MAX_OPEN_FIGURES:
            self._figures.append(_Figure())
        else:
            self._figures_too_deep += 1

    def _close_figure(self, tag: Tag) -> None:
        # Only a closed figure has a caption: nobody knows where an open one ends.
        if self._figures_too_deep:
            self._figures_too_deep -= 1
            return
        if not self._figures:
            return
        self._close_figcaption(tag)
        figure = self._figures.pop()
        if not figure.caption:
            return
        for number in figure.pictures:
            picture = self._pictures[number]
            self._pictures[number] = picture._replace(
                captions=(*picture.captions, (figure.caption, CaptionSource.FIGCAPTION))
            )

    def _open_figcaption(self, tag: Tag) -> None:
        if self._figures and self._figures[-1].caption_start is None:
            self._figures[-1].caption_start = tag.end

    def _close_figcaption(self, tag: Tag) -> None:
        if not self._figures:
            return
        figure = self._figures[-1]
        if figure.caption_start is not None and not figure.caption:
            end = min(tag.start, figure.caption_start + MAX_FIGCAPTION_BYTES)
            figure.caption = text_of(self._html[figure.caption_start : end])

    def _read_meta(self, tag: Tag) -> None:
        attributes = attributes_of(tag)
        name = (value(attributes, b"property") or value(attributes, b"name")).strip().lower()
        if name.startswith("og:"):
            self._og.append((name, value(attributes, b"content")))
        elif name:
            self.opt_outs.see_meta(name, value(attributes, b"content"))
        elif attributes.get(b"http-equiv", b"").strip().lower() == b"content-language":
            self.content_language = self.content_language or language_of(value(attributes, b"content"))

    def _read_title(self, tag: Tag) -> None:
        if self._title is None:
            self._title = unescape_text(raw_text_after(self._html, tag)[:MAX_FIGCAPTION_BYTES])

    def _end_of_head(self, tag: Tag) -> None:
        self._title = self._title or ""  # from here on, a title belongs to a drawing

    def _read_base(self, tag: Tag) -> None:
        attributes = attributes_of(tag)
        if self.base_href is None and b"href" in attributes:
            self.base_href = value(attributes, b"href")

    def _read_html(self, tag: Tag) -> None:
        attributes = attributes_of(tag)
        self.language = self.language or language_of(value(attributes, b"lang") or value(attributes, b"xml:lang"))

    def _read_link(self, tag: Tag) -> None:
        if self.licence.may_be(tag.attributes):
            attributes = attributes_of(tag)
            self.licence.see(value(attributes, b"rel"), value(attributes, b"href"))


def picture_of(attributes: dict[bytes, bytes], captions: Captions, sources: list[ImageCandidate]) -> Picture:
    """The largest candidate of an `<img>` and of the `<source>`s before it, with its size if the page gives one."""
    width, height = _pixels(attributes, b"width"), _pixels(attributes, b"height")
    own = best_candidate(attributes)
    best = largest([*([own] if own else []), *sources])
    if best is None or not best.url:
        return Picture("", captions, width, height)
    if best.width and best.width != width:
        height = max(1, round(height * best.width / width)) if width and height else None
        width = best.width
    return Picture(best.url, captions, width, height)


def _of_source(tag: Tag) -> list[ImageCandidate]:
    """The candidate of a `<source>`; empty if it has no usable one."""
    attributes = attributes_of(tag)
    is_photograph = not value(attributes, b"type").strip().lower().startswith(_NOT_PHOTOGRAPHS)
    found = best_candidate(attributes) if is_photograph else None
    return [found] if found else []


def og_pictures(metas: list[tuple[str, str]], title: str) -> list[Picture]:
    """The pictures of `og:image`, with the title of the page and with their own description if they have one."""
    og_title = next((content for name, content in metas if name == "og:title" and content.strip()), title)
    pictures: list[Picture] = []
    for name, content in metas:
        if name in ("og:image", "og:image:url") and content.strip():
            if pictures and pictures[-1].url == content:
                continue
            if len(pictures) == MAX_OG_PICTURES:
                break
            pictures.append(Picture(content, ((og_title, CaptionSource.OG),)))
        elif pictures and name == "og:image:alt":
            last = pictures[-1]
            pictures[-1] = last._replace(captions=(*last.captions, (content, CaptionSource.OG)))
        elif pictures and name in ("og:image:width", "og:image:height") and content.strip().isdecimal():
            side = int(content.strip()[:5])
            last = pictures[-1]
            pictures[-1] = last._replace(width=side) if name.endswith("width") else last._replace(height=side)
    return pictures


def language_of(text: str) -> str | None:
    """The first language in a list, such as `en-us` in ` EN_us, fr`; None if it is not a language."""
    tag = text.partition(",")[0].strip().replace("_", "-")
    return tag.lower() if _LANGUAGE.fullmatch(tag) else None


def _pixels(attributes: dict[bytes, bytes], name: bytes) -> int | None:
    number = _NUMBER.fullmatch(attributes.get(name, b""))
    return int(number[1]) if number else None
