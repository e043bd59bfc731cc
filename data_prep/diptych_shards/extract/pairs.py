"""Turn the pictures of a page into pairs, or give the reason why a picture becomes no pair."""

from __future__ import annotations

import enum
import re
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from diptych_shards.extract.options import ExtractOptions
from diptych_shards.web_address import BadUrlError, BaseUrl, last_segment


class CaptionSource(str, enum.Enum):
    """Where a caption was found. It is a str too: it is hashed for every pair, and the hash of a plain Enum is slow."""

    ALT = "alt"
    FIGCAPTION = "figcaption"
    OG = "og"
    SURROUNDING = "surrounding"


class DropReason(str, enum.Enum):
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
    PLACEHOLDER = "placeholder"
    COPY = "placeholder or copy of the picture beside it"
    TOO_MANY_PICTURES = "too many pictures on the page"
    OPTED_OUT = "the page opts out"


class PairDetails(NamedTuple):
    """What a page says about a pair."""

    source: CaptionSource
    width: int | None
    height: int | None


Captions = tuple[tuple[str, CaptionSource], ...]


class Picture(NamedTuple):
    """A picture of a page, as the markup describes it."""

    url: str
    captions: Captions
    width: int | None = None
    height: int | None = None


class Page(NamedTuple):
    """The pairs of a page, and what all of them share."""

    url: str
    language: str | None
    licence_url: str | None
    pairs: dict[tuple[str, str], PairDetails]
    """The details by url and caption, in the page's order."""
    opt_outs: tuple[str, ...] = ()
    """The directives of the owner that forbid something."""


class FoundPage(NamedTuple):
    page: Page
    warc_file: str | None
    """The file that contains the record of the page; None if it is the file being read."""
    record_offset: int | None


_TINY_SIDE = 3
_TINY_NAME = re.compile(r"(?:spacer|blank\.|pixel\.|clear\.gif|cleardot|transparent\.|trans\.gif|1x1|dot\.gif)")
_PLACEHOLDER_WORDS = frozenset("placeholder lazy lazyload loading loader grey gray".split())
"""The last words of names of .gif and .png files that are placeholders."""
_TRACKER = re.compile(
    r"https?://(?:pixel\.|www\.facebook\.com/tr\b|s?b\.scorecardresearch\.com/|bat\.bing\.com/|counter\.yadro\.ru/"
    r"|mc\.yandex\.ru/|(?:ad|stats\.g|googleads\.g|\d+\.fls)\.doubleclick\.net/|(?:www|ssl)\.google-analytics\.com/)"
)
_PHOTOGRAPHS = frozenset((".jpg", "jpeg", "webp"))
_DRAWINGS = (".gif", ".png")
_REASON_OF_ENDING = {".svg": DropReason.VECTOR_PICTURE, "svgz": DropReason.VECTOR_PICTURE, ".ico": DropReason.ICON}


def pairs_of(
    pictures: Iterable[tuple[str, Captions, int | None, int | None]],
    base_url: BaseUrl,
    options: ExtractOptions,
    dropped: Counter[DropReason],
) -> dict[tuple[str, str], PairDetails]:
    """The pairs worth keeping, each url with each caption once.

    pictures: `Picture`s, or tuples of their fields.
    """
    pairs: dict[tuple[str, str], PairDetails] = {}
    limit = options.max_caption_characters
    for address, captions, width, height in pictures:
        url, num_before = None, len(pairs)
        for raw, source in captions:
            text = " ".join(raw.split()) if len(raw) <= limit else _cut(raw, limit)
            if not text:
                continue
            if url is None:
                try:
                    url = base_url.resolve(address)
                except BadUrlError as error:
                    dropped[_REASON_OF_BAD_URL[error.why]] += 1
                    break
                reason = junk_reason(url, width, height, options)
                if reason is not None:
                    dropped[reason] += 1
                    break
            details = _WITHOUT_SIZE[source] if width is height is None else PairDetails(source, width, height)
            pairs.setdefault((url, text), details)
        else:
            if url is None:
                dropped[DropReason.NO_CAPTION] += 1
            elif len(pairs) == num_before:
                dropped[DropReason.REPEATED_ON_PAGE] += 1
    return pairs


def junk_reason(url: str, width: int | None, height: int | None, options: ExtractOptions) -> DropReason | None:
    """The reason why a picture is junk, by its address and the size on its page; None if it is not."""
    if width is not None or height is not None:
        sides = [side for side in (width, height) if side is not None]
        if min(sides) <= _TINY_SIDE:
            return DropReason.TRACKING_PIXEL
        if max(sides) <= options.icon_side:
            return DropReason.ICON
    path = url.partition("?")[0]
    if path[-4:].lower() in _PHOTOGRAPHS:
        return None
    name = last_segment(path).lower()
    reason = _REASON_OF_ENDING.get(name[-4:])
    if reason is not None:
        return reason
    if "favicon" in name:
        return DropReason.ICON
    if name[-4:] in _DRAWINGS and name[:-4].replace("_", "-").rpartition("-")[2] in _PLACEHOLDER_WORDS:
        return DropReason.PLACEHOLDER
    return DropReason.TRACKING_PIXEL if _TINY_NAME.match(name) or _TRACKER.match(url) else None


def _cut(text: str, limit: int) -> str:
    """The text on one line, cut at `limit` characters."""
    return " ".join(text[: 4 * limit].split())[:limit].rstrip()


_WITHOUT_SIZE = {source: PairDetails(source, None, None) for source in CaptionSource}
_REASON_OF_BAD_URL = {
    "empty": DropReason.NO_URL,
    "data": DropReason.DATA_URI,
    "scheme": DropReason.NOT_HTTP,
    "long": DropReason.URL_TOO_LONG,
    "bad": DropReason.BAD_URL,
}
