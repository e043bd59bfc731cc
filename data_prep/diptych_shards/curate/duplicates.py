"""Pairs that are there twice: which are the same, and how they are found in more pairs than fit in memory.

Exact: the same URL with the same caption as cleaned. Near: captions equal but for case, punctuation and spaces, and
addresses that are those of one picture in several sizes (scheme, `www.`, the query after a picture's name, a size as in
`cat-300x200.jpg`). One of them stays, chosen by hash and not by place: the order of the pairs decides nothing.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import regex
import xxhash

RECORD = np.dtype([("near", "<u8"), ("near_low", "<u8"), ("pair", "<u8"), ("row", "<u4")])
"""Of a pair: 128 bits of what it has in common with near-duplicates, 64 bits of itself, its row in its unit."""
FOUND = np.dtype([("unit", "<u4"), ("row", "<u4"), ("is_exact", "?")])
PAIRS_AT_ONCE = 1_000_000

_ASCII_WORDS_ONLY = {number: None for number in range(128) if not chr(number).isalnum()}
_NOT_OF_WORDS = regex.compile(r"[\p{P}\p{S}\p{Z}\p{C}]+")
_PICTURE = re.compile(r"\.(?:jpe?g|png|gif|webp|avif|bmp|tiff?)$", re.IGNORECASE)
_SIZE = re.compile(r"[-_]\d{2,4}x\d{2,4}(?=\.\w{3,4}$)")


def pair_hash(url: str, caption: str) -> int:
    """64 bits of a pair, with its caption as cleaned."""
    return xxhash.xxh3_64_intdigest(f"{url}\0{caption}".encode("utf-8", "surrogatepass"))


def near_hash(url: str, caption: str) -> int:
    """128 bits that near-duplicates have in common."""
    return pair_hash_128(normal_url(url), normal_caption(caption))


def pair_hash_128(url: str, caption: str) -> int:
    return xxhash.xxh3_128_intdigest(f"{url}\0{caption}".encode("utf-8", "surrogatepass"))


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


def num_partitions(num_pairs: int) -> int:
    """So many that each is searched in bounded memory."""
    return num_pairs // PAIRS_AT_ONCE + 1


def find_duplicates(units: Sequence[Path], partition: int, num_partitions: int) -> np.ndarray:
    """FOUND of the pairs that repeat another one, by unit and row.

    units: files of RECORD arrays, each sorted by `near`; only the partition's share of them is read.
    """
    low, high = (2**64 * number // num_partitions for number in (partition, partition + 1))
    shares = []
    for path in units:
        records = np.load(path, mmap_mode="r")
        first, last = (bisect_left(records["near"], bound, key=int) for bound in (low, high))
        shares.append(np.array(records[first:last]))
    unit = np.repeat(np.arange(len(shares), dtype=np.uint32), [len(share) for share in shares])
    records = np.concatenate([*shares, np.zeros(0, RECORD)])
    order = np.lexsort((records["row"], unit, records["pair"], records["near_low"], records["near"]))
    records, unit = records[order], unit[order]

    repeats_near = (records["near"][1:] == records["near"][:-1]) & (records["near_low"][1:] == records["near_low"][:-1])
    places = np.flatnonzero(repeats_near) + 1
    found = np.zeros(len(places), FOUND)
    found["unit"] = unit[places]
    found["row"] = records["row"][places]
    found["is_exact"] = records["pair"][places] == records["pair"][places - 1]
    return found[np.argsort(found, order=("unit", "row"))]


def of_unit(found: Sequence[Path], unit: int) -> np.ndarray:
    """The duplicates of one unit, from the files of all partitions."""
    shares = []
    for path in found:
        records = np.load(path, mmap_mode="r")
        first, last = (bisect_left(records["unit"], bound, key=int) for bound in (unit, unit + 1))
        shares.append(np.array(records[first:last]))
    return np.concatenate([*shares, np.zeros(0, FOUND)])
