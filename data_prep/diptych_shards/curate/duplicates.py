"""Find the pairs that repeat another one, among more than fit in memory.

Exact: the same URL with the same caption as cleaned. Near: captions equal but for case, punctuation and spaces, and
addresses equal but for what differs between sizes of one picture (scheme, `www.`, the query after a picture's name, a
size as in `cat-300x200.jpg`). Of near-duplicates the largest is kept, of equally large ones the one with the smallest
hash. The order of the pairs decides only which of exact copies is kept.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import regex
import xxhash

from diptych_shards.curate.external_sort import read_range

RECORD = np.dtype([("key", "<u8"), ("key_low", "<u8"), ("pair", "<u8"), ("size", "<u4"), ("place", "<u8")])
"""A pair: 128 bits that its near-duplicates share, 64 bits of its own, its `size_of`, its `place`."""
FOUND = np.dtype([("key", "<u8"), ("is_exact", "?")])
"""A pair that repeats another one; the key is its `place`."""
PAIRS_AT_ONCE = 1_000_000

WHOLE = 2**31
"""The smallest `size_of` if the address names no size: more than any size that an address can name."""

_ASCII_WORDS_ONLY = {number: None for number in range(128) if not chr(number).isalnum()}
_NOT_OF_WORDS = regex.compile(r"[\p{P}\p{S}\p{Z}\p{C}]+")
_PICTURE = re.compile(r"\.(?:jpe?g|png|gif|webp|avif|bmp|tiff?)$", re.IGNORECASE)
_SIZE = re.compile(r"[-_](\d{2,4})x(\d{2,4})(?=\.\w{3,4}(?:[?#]|$))")
_ASKED_SIZE = re.compile(r"[?&](?:w|width|h|height|size|resize|fit)=(\d{1,5})(?:(?:x|,|%2c)(\d{1,5}))?", re.IGNORECASE)


def pair_hash(url: str, caption: str) -> int:
    """64 bits of a pair, whose caption is cleaned."""
    return xxhash.xxh3_64_intdigest(f"{url}\0{caption}".encode("utf-8", "surrogatepass"))


def near_hash(url: str, caption: str) -> int:
    """128 bits that near-duplicates share."""
    return pair_hash_128(normal_url(url), normal_caption(caption))


def pair_hash_128(url: str, caption: str) -> int:
    return xxhash.xxh3_128_intdigest(f"{url}\0{caption}".encode("utf-8", "surrogatepass"))


def size_of(url: str, hinted_area: int) -> int:
    """A number below 2**32 that is larger for the address of a larger picture, among near-duplicates.

    hinted_area: pixels, as the table gives them; 0: not known. It counts only if the address names no size: the
    address says how large the picture is, the table how large a page shows it.
    """
    named = _named_area(url)
    return min(named, WHOLE - 1) if named is not None else WHOLE + min(hinted_area, WHOLE - 1)


def normal_caption(caption: str) -> str:
    """The letters and digits of the caption, without case; the caption itself if it has none."""
    folded = caption.casefold()
    return (folded.translate(_ASCII_WORDS_ONLY) if folded.isascii() else _NOT_OF_WORDS.sub("", folded)) or caption


def normal_url(url: str) -> str:
    """A text that is equal for addresses that are most likely those of one picture."""
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
    """The pixels that `-300x200.jpg`, `?w=300` (a square) or `?w=300&h=200` name; the smallest if there are several."""
    areas = [int(width) * int(height) for width, height in _SIZE.findall(url)]
    if "?" in url and (sides := [int(side) for found in _ASKED_SIZE.findall(url) for side in found if side]):
        areas.append(sides[0] * sides[min(1, len(sides) - 1)])
    return min(areas, default=None)


def place(unit: int, row: int) -> int:
    """The number of a pair among all; the pairs of a unit have consecutive numbers."""
    return (unit << 32) + row


def row_of(places: np.ndarray) -> np.ndarray:
    """The rows of pairs within their units."""
    rows: np.ndarray = places & np.uint64(2**32 - 1)
    return rows


def num_shares(num_pairs: int) -> int:
    """How many shares keep the memory of a search bounded; hashes spread the pairs evenly over them."""
    return num_pairs // PAIRS_AT_ONCE + 1


def find_duplicates(paths: Sequence[Path], share: int, num_shares: int) -> np.ndarray:
    """Find the pairs of a share that repeat another one, as FOUND.

    paths: sorted files of RECORDs; only the share is read.
    """
    records = read_range(paths, RECORD, 2**64 * share // num_shares, 2**64 * (share + 1) // num_shares)
    is_exact = np.zeros(len(records), bool)
    is_exact[exact_copies(records)] = True
    firsts = np.flatnonzero(~is_exact)
    of_firsts = records[firsts]
    order = np.lexsort((of_firsts["pair"], ~of_firsts["size"], of_firsts["key_low"], of_firsts["key"]))
    near = firsts[order[_repeats(of_firsts[order], "key", "key_low")]]

    repeating = np.concatenate([np.flatnonzero(is_exact), near])
    found = np.zeros(len(repeating), FOUND)
    found["key"] = records["place"][repeating]
    found["is_exact"] = is_exact[repeating]
    return found


def exact_copies(records: np.ndarray) -> np.ndarray:
    """The numbers of the records that equal another one, which is larger or, if equally large, comes first."""
    order = np.lexsort((records["place"], ~records["size"], records["pair"], records["key_low"], records["key"]))
    repeating: np.ndarray = order[_repeats(records[order], "key", "key_low", "pair")]
    return repeating


def _repeats(records: np.ndarray, *fields: str) -> np.ndarray:
    """Whether each record equals the one before it in these fields."""
    repeats = np.ones(len(records), bool)
    repeats[:1] = False
    for field in fields:
        repeats[1:] &= records[field][1:] == records[field][:-1]
    return repeats
