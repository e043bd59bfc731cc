"""Pairs that are there twice, found in more pairs than fit in memory.

Of near-duplicates the largest stays, of equally large ones that of the smallest hash: the order of the pairs decides
nothing but which of exact copies it is.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path

import numpy as np

RECORD = np.dtype([("near", "<u8"), ("near_low", "<u8"), ("pair", "<u8"), ("size", "<u4"), ("row", "<u4")])
"""Of a pair: 128 bits that its near-duplicates share, 64 bits of itself, its `size_of`, its row in its unit."""
FOUND = np.dtype([("unit", "<u4"), ("row", "<u4"), ("is_exact", "?")])
PAIRS_AT_ONCE = 1_000_000


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
    order = np.lexsort((records["row"], unit, ~records["size"], records["pair"], records["near_low"], records["near"]))
    records, unit = records[order], unit[order]

    is_exact = _repeats(records, "near", "near_low", "pair")
    firsts = np.flatnonzero(~is_exact)
    of_firsts = records[firsts]
    order = np.lexsort((of_firsts["pair"], ~of_firsts["size"], of_firsts["near_low"], of_firsts["near"]))
    near = firsts[order[_repeats(of_firsts[order], "near", "near_low")]]

    places = np.concatenate([np.flatnonzero(is_exact), near])
    found = np.zeros(len(places), FOUND)
    found["unit"] = unit[places]
    found["row"] = records["row"][places]
    found["is_exact"] = is_exact[places]
    return found[np.argsort(found, order=("unit", "row"))]


def of_unit(found: Sequence[Path], unit: int) -> np.ndarray:
    """The duplicates of one unit, from the files of all partitions."""
    shares = []
    for path in found:
        records = np.load(path, mmap_mode="r")
        first, last = (bisect_left(records["unit"], bound, key=int) for bound in (unit, unit + 1))
        shares.append(np.array(records[first:last]))
    return np.concatenate([*shares, np.zeros(0, FOUND)])


def _repeats(records: np.ndarray, *fields: str) -> np.ndarray:
    """Whether each has the same in these fields as the one before it."""
    repeats = np.ones(len(records), bool)
    repeats[:1] = False
    for field in fields:
        repeats[1:] &= records[field][1:] == records[field][:-1]
    return repeats
