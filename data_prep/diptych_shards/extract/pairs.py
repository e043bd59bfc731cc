"""What extraction yields, and why a picture of a page yields nothing."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from diptych_shards.extract.options import ExtractOptions
from diptych_shards.extract.urls import BadUrlError, Resolver, last_segment


class Source(enum.Enum):
    """Where a caption stood."""

    ALT = "alt"
    FIGCAPTION = "figcaption"
    OG = "og"
    SURROUNDING = "surrounding"


class Reason(enum.Enum):
    """Why a picture, a page or a record yields no pair."""

    NO_CAPTION = "no caption"
    NO_URL = "no url"
    DATA_URI = "data: uri"
    NOT_HTTP = "url is not http"
    BAD_URL = "bad url"
    URL_TOO_LONG = "url too long"
    TRACKING_PIXEL = "tracking pixel"
    ICON = "icon"
    VECTOR_PICTURE = "vector picture"
    REPEATED_ON_PAGE = "repeated on the page"
    TOO_MANY_PICTURES = "too many pictures on the page"


class Pair(NamedTuple):
    url: str
    caption: str
    source: str
    width: int | None
    height: int | None


class Picture(NamedTuple):
    """A picture of a page as its markup tells of it."""

    url: str
    captions: tuple[tuple[str, Source], ...]
    width: int | None = None
    height: int | None = None


class Page(NamedTuple):
    """The pairs of a page, and what is true of all of them."""

    url: str
    language: str | None
    licence_url: str | None
    pairs: list[Pair]


_TINY_SIDE = 3
_TINY_NAMES = (
    "spacer",
    "blank.",
    "pixel.",
    "clear.gif",
    "cleardot",
    "transparent.",
    "trans.gif",
    "1x1",
    "dot.gif",
)
_TRACKERS = (
    "://www.facebook.com/tr",
    "://pixel.",
    "://b.scorecardresearch.com/",
    "://sb.scorecardresearch.com/",
    "://pixel.quantserve.com/",
    "://bat.bing.com/",
    "://counter.yadro.ru/",
    "://mc.yandex.ru/",
    "doubleclick.net/",
    "google-analytics.com/",
)


def pairs_of(
    pictures: Iterable[Picture], resolver: Resolver, options: ExtractOptions, dropped: Counter[Reason]
) -> list[Pair]:
    """The pairs worth keeping, in the page's order, each url with each caption once."""
    pairs: dict[tuple[str, str], Pair] = {}
    for picture in pictures:
        captions = [(collapsed(text, options), source) for text, source in picture.captions]
        captions = [(text, source) for text, source in captions if text]
        if not captions:
            dropped[Reason.NO_CAPTION] += 1
            continue
        try:
            url = resolver.resolve(picture.url)
        except BadUrlError as error:
            dropped[_REASON_OF_BAD_URL[error.why]] += 1
            continue
        reason = junk(url, picture.width, picture.height, options)
        if reason is not None:
            dropped[reason] += 1
            continue
        is_new = False
        for text, source in captions:
            if (url, text) not in pairs:
                pairs[url, text] = Pair(url, text, source.value, picture.width, picture.height)
                is_new = True
        if not is_new:
            dropped[Reason.REPEATED_ON_PAGE] += 1
    return list(pairs.values())


def junk(url: str, width: int | None, height: int | None, options: ExtractOptions) -> Reason | None:
    """Why nobody wants to see this picture, if so; what its page says of it decides, no byte of it is fetched."""
    sides = [side for side in (width, height) if side is not None]
    if sides and min(sides) <= _TINY_SIDE:
        return Reason.TRACKING_PIXEL
    if sides and max(sides) <= options.icon_side:
        return Reason.ICON
    name = last_segment(url).lower()
    if name.endswith((".svg", ".svgz")):
        return Reason.VECTOR_PICTURE
    if name.endswith(".ico") or "favicon" in name:
        return Reason.ICON
    if name.startswith(_TINY_NAMES) or any(tracker in url for tracker in _TRACKERS):
        return Reason.TRACKING_PIXEL
    return None


def collapsed(text: str, options: ExtractOptions) -> str:
    """On one line, no longer than a caption may be."""
    return " ".join(text[: 4 * options.max_caption_characters].split())[: options.max_caption_characters].strip()


_REASON_OF_BAD_URL = {
    "empty": Reason.NO_URL,
    "data": Reason.DATA_URI,
    "scheme": Reason.NOT_HTTP,
    "long": Reason.URL_TOO_LONG,
    "bad": Reason.BAD_URL,
}
