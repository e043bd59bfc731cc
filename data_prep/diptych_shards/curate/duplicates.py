"""Pairs that are there twice, found in more pairs than fit in memory.

Of near-duplicates the largest stays, of equally large ones that of the smallest hash: the order of the pairs decides
nothing but which of exact copies it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from diptych_shards.curate.sorted_files import read_range

RECORD = np.dtype([("key", "<u8"), ("key_low", "<u8"), ("pair", "<u8"), ("size", "<u4"), ("place", "<u8")])
"""Of a pair: 128 bits that its near-duplicates share, 64 bits of itself, its `size_of`, its `place`."""
FOUND = np.dtype([("key", "<u8"), ("is_exact", "?")])
"""Of a pair that repeats another one, by its `place`."""
PAIRS_AT_ONCE = 1_000_000


def place(unit: int, row: int) -> int:
    """A pair's number among all; those of a unit follow one another."""
    return (unit << 32) + row


def row_of(places: np.ndarray) -> np.ndarray:
    """In their units."""
    return places & np.uint64(2**32 - 1)


def num_shares(num_pairs: int) -> int:
    """So many that each is searched in bounded memory; hashes share the pairs out evenly."""
    return num_pairs // PAIRS_AT_ONCE + 1


def find_duplicates(paths: Sequence[Path], share: int, num_shares: int) -> np.ndarray:
    """FOUND of the pairs that repeat another one.

    paths: sorted files of RECORDs, of which only the share is read.
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
    """The numbers of those that are the same as another one, which is larger or stands before it."""
    order = np.lexsort((records["place"], ~records["size"], records["pair"], records["key_low"], records["key"]))
    return order[_repeats(records[order], "key", "key_low", "pair")]


def _repeats(records: np.ndarray, *fields: str) -> np.ndarray:
    """Whether each has the same in these fields as the one before it."""
    repeats = np.ones(len(records), bool)
    repeats[:1] = False
    for field in fields:
        repeats[1:] &= records[field][1:] == records[field][:-1]
    return repeats
