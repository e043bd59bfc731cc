"""Find the addresses of an `<img>`, in `src`, in `srcset` and where scripts keep them, and choose between its copies.

A picture that a script loads has a placeholder in `src` and its address in an attribute for the script. Often a
`noscript` next to it contains the picture again, for browsers without scripts.
"""

from __future__ import annotations

import enum
import re
from typing import NamedTuple

from diptych_shards.extract.tags import value

# A URL runs to the next white space and may contain commas; those at its end close the candidate.
# In the descriptors that follow, a comma closes the candidate unless it is in parentheses.
_CANDIDATE = re.compile(r"[\s,]*([^\s,]\S*)((?:[^(),]|\([^)]*\))*)")
_WIDTH = re.compile(r"(?<!\S)(\d{1,7})w(?!\S)")
_DENSITY = re.compile(r"(?<!\S)(\d{1,4}(?:\.\d{1,40})?|\.\d{1,40})x(?!\S)")
MAX_CANDIDATES = 100

LAZY_SRCSETS = (b"data-srcset", b"data-lazy-srcset", b"data-src-set", b"data-original-set", b"lazy-srcset")
LAZY_ADDRESSES = (
    # The first ones name larger pictures than the others.
    b"data-orig-file",
    b"data-large-file",
    b"data-hi-res-src",
    b"data-src-large",
    b"data-full-src",
    b"data-retina-src",
    b"data-src-retina",
    b"data-src-hq",
    b"data-src",
    b"data-lazy-src",
    b"data-original",
    b"data-lazy",
    b"data-lazyload",
    b"data-lazy-load",
    b"data-lazy-img",
    b"data-original-src",
    b"data-img-src",
    b"data-image-src",
    b"data-actualsrc",
    b"data-echo",
    b"data-defer-src",
    b"data-ll-src",
    b"data-url",
    b"data-img",
    b"data-image",
    b"data-dejavu-src",
    b"lazy-src",
    b"imgurl",
)
_KNOWN = frozenset(LAZY_SRCSETS + LAZY_ADDRESSES)
_AMBIGUOUS = frozenset((b"data-url", b"data-img", b"data-image", b"data-echo", b"data-lazy"))
"""These may hold the address of a page, or a switch; only addresses with the suffix of a picture count."""
_PICTURE_NAME = re.compile(r"[^?#]*\.(?:jpe?g|png|webp|gif|avif|bmp)(?:[?#].*)?", re.IGNORECASE | re.DOTALL)
_NO_ADDRESS = re.compile(rb"alt|title|on.*")
_ABSOLUTE = re.compile(r"(?:https?:)?//[^\s{}\"'<>]+", re.IGNORECASE)
_NOSCRIPT = re.compile(rb"\s*<(/?)noscript\b[^>]*>\s*", re.IGNORECASE)
_NEAR_BYTES = 256
_TINY_SIDES = (b"0", b"1", b"2", b"3")


class ImageCandidate(NamedTuple):
    url: str
    width: int | None
    density: float

    @property
    def size(self) -> tuple[int, float]:
        """A measure of the picture's size; a width counts before a density."""
        return self.width or 0, self.density


def candidates(srcset: str) -> list[ImageCandidate]:
    """The candidates of a `srcset` in their order, at most the first hundred."""
    found: list[ImageCandidate] = []
    position = 0
    while len(found) < MAX_CANDIDATES:
        match = _CANDIDATE.match(srcset, position)
        if not match:
            break
        url, descriptors, position = match[1], match[2], match.end()
        if url.endswith(","):
            url, descriptors, position = url.rstrip(","), "", match.end(1)
        width, density = _WIDTH.search(descriptors), _DENSITY.search(descriptors)
        found.append(ImageCandidate(url, int(width[1]) if width else None, float(density[1]) if density else 1.0))
    return found


def largest(found: list[ImageCandidate]) -> ImageCandidate | None:
    """The largest candidate, the first of equally large ones; None if there is none."""
    return max(found, key=lambda candidate: candidate.size, default=None)


class Image(NamedTuple):
    """An `<img>` or `<amp-img>`."""

    start: int
    end: int
    alt: str
    is_lazy: bool
    """A script sets its address, and the address was found."""
    is_placeholder: bool
    """It shows no picture: it has no address, a data: URI, or an address that a script replaces."""
    is_tiny: bool


class Copy(enum.Enum):
    """Which of two images of one picture is useless."""

    FIRST = enum.auto()
    SECOND = enum.auto()


def image_of(start: int, end: int, attributes: dict[bytes, bytes]) -> Image:
    is_lazy = bool(_lazy_candidates(attributes))
    is_placeholder = not is_lazy and (
        b"lazy" in attributes.get(b"class", b"").lower()
        or not any(not is_inline(one.url) for one in _plain_candidates(attributes))
    )
    is_tiny = attributes.get(b"width") in _TINY_SIDES or attributes.get(b"height") in _TINY_SIDES
    return Image(start, end, value(attributes, b"alt").strip(), is_lazy, is_placeholder, is_tiny)


def copy_of(page: bytes, first: Image, second: Image) -> Copy | None:
    """Which of two consecutive images repeats the other, for browsers with or without scripts; None if neither does."""
    between = page[first.end : second.start] if second.start - first.end <= _NEAR_BYTES else b""
    noscript = _NOSCRIPT.fullmatch(between)
    if noscript is None:
        return None
    scripted, plain = (second, first) if noscript[1] else (first, second)
    if plain.is_tiny:  # a tracker, which has nothing to do with the picture next to it
        return None
    is_same = scripted.alt == plain.alt if scripted.alt and plain.alt else scripted.is_placeholder
    if not is_same:
        return None
    useless = plain if scripted.is_lazy else scripted
    return Copy.FIRST if useless is first else Copy.SECOND


def best_candidate(attributes: dict[bytes, bytes]) -> ImageCandidate | None:
    """The largest of an element's own addresses; if scripts keep some, the others are placeholders."""
    found = _lazy_candidates(attributes) or _plain_candidates(attributes)
    usable = [candidate for candidate in found if not is_inline(candidate.url)]
    return largest(usable) or (found[-1] if found else None)


def is_inline(url: str) -> bool:
    return url.lstrip()[:5].lower() == "data:" or not url.strip()


def _lazy_candidates(attributes: dict[bytes, bytes]) -> list[ImageCandidate]:
    """The usable candidates that scripts keep."""
    found = [] if _KNOWN.isdisjoint(attributes) else _known_candidates(attributes)
    return found or ([] if _has_own_address(attributes) else _likely_candidates(attributes))


def _known_candidates(attributes: dict[bytes, bytes]) -> list[ImageCandidate]:
    lists = [value(attributes, name) for name in LAZY_SRCSETS if name in attributes]
    found = [candidate for srcset in lists for candidate in candidates(srcset)]
    for name in LAZY_ADDRESSES:
        url = value(attributes, name)
        if url and (name not in _AMBIGUOUS or _PICTURE_NAME.fullmatch(url)):
            found.append(ImageCandidate(url, None, 1.0))
    return [candidate for candidate in found if not is_inline(candidate.url)]


def _has_own_address(attributes: dict[bytes, bytes]) -> bool:
    src = attributes.get(b"src", b"").lstrip()
    return b"srcset" in attributes or src != b"" and src[:5].lower() != b"data:"


def _likely_candidates(attributes: dict[bytes, bytes]) -> list[ImageCandidate]:
    """The address in an unknown attribute, if its name or the address's suffix says that it is a picture's."""
    for name, raw in attributes.items():
        if b"//" not in raw or _NO_ADDRESS.fullmatch(name):
            continue
        url = value(attributes, name).strip()
        if _ABSOLUTE.fullmatch(url) and (b"src" in name or _PICTURE_NAME.fullmatch(url)):
            return [ImageCandidate(url, None, 1.0)]
    return []


def _plain_candidates(attributes: dict[bytes, bytes]) -> list[ImageCandidate]:
    found = candidates(value(attributes, b"srcset"))
    src = value(attributes, b"src")
    return [*found, ImageCandidate(src, None, 1.0)] if src else found
