"""What makes two pairs the same, and which of them shows its picture largest.

Exact: the same URL with the same caption as cleaned. Near: captions equal but for case, punctuation and spaces, and
addresses that are those of one picture in several sizes (scheme, `www.`, the query after a picture's name, a size as in
`cat-300x200.jpg`).
"""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit

import regex
import xxhash

WHOLE = 2**31
"""Of `size_of` where the address names no size: more than any that it could name."""

_ASCII_WORDS_ONLY = {number: None for number in range(128) if not chr(number).isalnum()}
_NOT_OF_WORDS = regex.compile(r"[\p{P}\p{S}\p{Z}\p{C}]+")
_PICTURE = re.compile(r"\.(?:jpe?g|png|gif|webp|avif|bmp|tiff?)$", re.IGNORECASE)
_SIZE = re.compile(r"[-_](\d{2,4})x(\d{2,4})(?=\.\w{3,4}(?:[?#]|$))")
_ASKED_SIZE = re.compile(r"[?&](?:w|width|h|height|size|resize|fit)=(\d{1,5})(?:(?:x|,|%2c)(\d{1,5}))?", re.IGNORECASE)


def pair_hash(url: str, caption: str) -> int:
    """64 bits of a pair, with its caption as cleaned."""
    return xxhash.xxh3_64_intdigest(f"{url}\0{caption}".encode("utf-8", "surrogatepass"))


def near_hash(url: str, caption: str) -> int:
    """128 bits that near-duplicates have in common."""
    return pair_hash_128(normal_url(url), normal_caption(caption))


def pair_hash_128(url: str, caption: str) -> int:
    return xxhash.xxh3_128_intdigest(f"{url}\0{caption}".encode("utf-8", "surrogatepass"))


def size_of(url: str, hinted_area: int) -> int:
    """Larger for the address of a larger picture, among near-duplicates; below 2**32.

    hinted_area: pixels, as the table has it; it counts where the address names no size, for that is how large the
    picture is and not how large a page shows it. 0: not known.
    """
    named = _named_area(url)
    return min(named, WHOLE - 1) if named is not None else WHOLE + min(hinted_area, WHOLE - 1)


def normal_caption(caption: str) -> str:
    """Letters and digits only, without case; the caption itself where it has none."""
    folded = caption.casefold()
    return (folded.translate(_ASCII_WORDS_ONLY) if folded.isascii() else _NOT_OF_WORDS.sub("", folded)) or caption


def normal_url(url: str) -> str:
    """Equal for addresses that are most likely those of one picture."""
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").removeprefix("www."), parts.port
    except ValueError:
        return url
    path = unquote(parts.path)
    # After a picture's file name, a query asks for a size or defeats a cache; elsewhere it names the picture.
    query = "" if _PICTURE.search(path) else f"?{parts.query}"
    return f"//{host}{'' if port in (None, 80, 443) else f':{port}'}{_SIZE.sub('', path)}{query}"


def _named_area(url: str) -> int | None:
    """Pixels of `-300x200.jpg`, of `?w=300` (as high as wide), of `?w=300&h=200`; the smallest if there are several."""
    areas = [int(width) * int(height) for width, height in _SIZE.findall(url)]
    if "?" in url and (sides := [int(side) for found in _ASKED_SIZE.findall(url) for side in found if side]):
        areas.append(sides[0] * sides[min(1, len(sides) - 1)])
    return min(areas, default=None)
