"""Find all pairs of 64-bit hashes that differ in at most so many bits, without comparing each with each.

Cut the 64 bits into B blocks. Two hashes that differ in at most d bits agree in at least B - d whole blocks, so that
sorting by each choice of B - d blocks in turn brings every such pair together: C(B, d) sorts, no pair is missed. For
d = 4, five blocks (five sorts by 12 or 13 bits) are the fewest that are exact; with more hashes, more blocks make
longer keys and fewer false neighbours: six blocks are 15 sorts by 21 bits, seven 35 by 27, eight 70 by 32.

Hashes of drawings share half their bits. So the blocks get bits that distinguish the hashes about equally well, and
their number is chosen by the neighbours that these hashes really have.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np

MAX_DISTANCE = 8
USUAL_DISTANCE = 4

_NANOSECONDS_PER_SORTED = 150
_NANOSECONDS_PER_COMPARED = 30
_MOST_MORE_BLOCKS = 7
_SORTS_TRIED = 3
_SAMPLED = 100_000
_PAIRS_AT_ONCE = 1_000_000


def near_pairs(hashes: np.ndarray, max_distance: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Positions (i64, i64) of the pairs that differ in at most `max_distance` bits, each pair once.

    hashes: u64, no two equal, since equal ones would all be compared with each other.
    """
    if not 0 <= max_distance <= MAX_DISTANCE:
        raise ValueError(f"a distance of {max_distance} bits; it must be 0 to {MAX_DISTANCE}")
    blocks = cut(hashes, num_blocks(hashes, max_distance))
    for chosen in _choices(len(blocks), max_distance):
        # A pair agrees in several choices; it is given at the first.
        must_differ = [blocks[block] for block in range(chosen[-1]) if block not in chosen]
        key = hashes & _union(blocks, chosen)
        order = np.argsort(key, kind="stable")
        key = key[order]
        positions = np.arange(len(key) - 1)
        for step in range(1, len(key)):
            positions = positions[: np.searchsorted(positions, len(key) - step)]
            positions = positions[key[positions] == key[positions + step]]
            if not len(positions):
                break
            one, other = order[positions], order[positions + step]
            differing = hashes[one] ^ hashes[other]
            is_new = np.bitwise_count(differing) <= max_distance
            for block in must_differ:
                is_new &= differing & block != 0
            if is_new.any():
                yield one[is_new], other[is_new]


class NearHashes:
    """Finds which of some hashes are near to others, which come part by part and need not all fit in memory."""

    def __init__(self, hashes: np.ndarray, max_distance: int):
        """hashes: u64; equal ones are allowed."""
        blocks = cut(hashes, num_blocks(np.unique(hashes), max_distance))
        self._hashes = hashes
        self._max_distance = max_distance
        self._sorted = []
        for chosen in _choices(len(blocks), max_distance):
            mask = _union(blocks, chosen)
            order = np.argsort(hashes & mask, kind="stable")
            self._sorted.append((mask, order, (hashes & mask)[order]))

    def pairs(self, others: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Positions (i64, i64) in the hashes and in the others of pairs that are near; a pair may come repeatedly."""
        for mask, order, keys in self._sorted:
            masked = others & mask
            starts = np.searchsorted(keys, masked)
            sizes = np.searchsorted(keys, masked, "right") - starts
            ends = np.cumsum(sizes)
            first = 0
            while first < len(others):
                # At least one of the others at a time, and not many more pairs than fit comfortably in memory.
                before = ends[first] - sizes[first]
                stop = max(first + 1, int(np.searchsorted(ends, before + _PAIRS_AT_ONCE, "right")))
                other = np.repeat(np.arange(first, stop), sizes[first:stop])
                places = np.arange(before, ends[stop - 1]) - (ends - sizes - starts)[other]
                own = order[places]
                near = np.bitwise_count(self._hashes[own] ^ others[other]) <= self._max_distance
                if near.any():
                    yield own[near], other[near]
                first = stop


def num_blocks(hashes: np.ndarray, max_distance: int) -> int:
    """How many blocks to cut the hashes into, for the least time."""

    def seconds(blocks: int) -> float:
        sorts = math.comb(blocks, max_distance)
        bits = cut(hashes, blocks)
        choices = _choices(blocks, max_distance)
        tried = [_union(bits, choices[place * len(choices) // _SORTS_TRIED]) for place in range(_SORTS_TRIED)]
        compared = np.mean([_num_compared(hashes & mask) for mask in tried])
        return sorts * (len(hashes) * _NANOSECONDS_PER_SORTED + float(compared) * _NANOSECONDS_PER_COMPARED)

    fewest = max_distance + 1
    if len(hashes) < 2:
        return fewest
    return min(range(fewest, fewest + _MOST_MORE_BLOCKS), key=seconds)


def cut(hashes: np.ndarray, blocks: int) -> list[np.uint64]:
    """The bits of each block; the blocks distinguish the hashes about equally well."""
    sample = hashes[:: max(1, len(hashes) // _SAMPLED)]
    shares = [np.count_nonzero(sample & np.uint64(1 << bit)) / max(len(sample), 1) for bit in range(64)]
    by_use = sorted(range(64), key=lambda bit: abs(shares[bit] - 0.5))
    return [np.uint64(sum(1 << bit for bit in by_use[block::blocks])) for block in range(blocks)]


def _choices(blocks: int, max_distance: int) -> list[tuple[int, ...]]:
    """Every choice of all blocks but `max_distance`."""
    return list(combinations(range(blocks), blocks - max_distance))


def _union(blocks: Sequence[np.uint64], chosen: Sequence[int]) -> np.uint64:
    union: np.uint64 = np.bitwise_or.reduce([blocks[block] for block in chosen])
    return union


def _num_compared(keys: np.ndarray) -> int:
    """Pairs with equal keys."""
    _, times = np.unique(keys, return_counts=True)
    return int((times * (times - 1) // 2).sum())
