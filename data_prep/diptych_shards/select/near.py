"""Pairs of 64-bit hashes that differ in at most so many bits: all of them, without comparing all.

Cut the 64 bits into B blocks. Two hashes that differ in at most d bits agree in at least B - d whole blocks, so that
sorting by each choice of B - d blocks in turn brings every such pair together: C(B, d) sorts, no pair is missed. For
d = 4, five blocks (five sorts by 12 or 13 bits) are the fewest that are exact; with more hashes, more blocks make
longer keys and fewer false neighbours: six blocks are 15 sorts by 21 bits, seven 35 by 27, eight 70 by 32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import combinations

import numpy as np

MAX_DISTANCE = 8

_NANOSECONDS_PER_SORTED = 150
_NANOSECONDS_PER_COMPARED = 30
_CROWDING = 8
"""Bits of real hashes are not independent: neighbours are so many times as frequent as by chance."""


def near_pairs(hashes: np.ndarray, max_distance: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Positions (i64, i64) of the pairs that differ in at most `max_distance` bits, some of them more than once.

    hashes: u64, no two equal: those of a crowd of copies would be compared each with each.
    """
    if not 0 <= max_distance <= MAX_DISTANCE:
        raise ValueError(f"a distance of {max_distance} bits; it must be 0 to {MAX_DISTANCE}")
    for mask in masks(num_blocks(len(hashes), max_distance), max_distance):
        key = hashes & mask
        order = np.argsort(key, kind="stable")
        key = key[order]
        positions = np.arange(len(key) - 1)
        for step in range(1, len(key)):
            positions = positions[: np.searchsorted(positions, len(key) - step)]
            positions = positions[key[positions] == key[positions + step]]
            if not len(positions):
                break
            one, other = order[positions], order[positions + step]
            is_near = num_bits(hashes[one] ^ hashes[other]) <= max_distance
            if is_near.any():
                yield one[is_near], other[is_near]


def num_blocks(num_hashes: int, max_distance: int) -> int:
    """Into how many blocks to cut the hashes, for the least time."""

    def seconds(blocks: int) -> float:
        sorts = math.comb(blocks, max_distance)
        key_bits = 64 * (blocks - max_distance) / blocks
        compared = num_hashes**2 / 2 ** (key_bits + 1) * _CROWDING
        return sorts * (num_hashes * _NANOSECONDS_PER_SORTED + compared * _NANOSECONDS_PER_COMPARED)

    return min(range(max_distance + 1, max_distance + 6), key=seconds)


def masks(blocks: int, max_distance: int) -> list[np.uint64]:
    """For each choice of all blocks but `max_distance`: their bits."""
    ends = [64 * block // blocks for block in range(blocks + 1)]
    bits = [(1 << end) - (1 << start) for start, end in zip(ends, ends[1:], strict=False)]
    return [np.uint64(sum(chosen)) for chosen in combinations(bits, blocks - max_distance)]


def num_bits(values: np.ndarray) -> np.ndarray:
    """How many bits of each u64 are set."""
    # By halves; numpy counts bits itself only from 2.0 on.
    values = values - ((values >> np.uint64(1)) & np.uint64(0x5555555555555555))
    values = (values & np.uint64(0x3333333333333333)) + ((values >> np.uint64(2)) & np.uint64(0x3333333333333333))
    values = (values + (values >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return (values * np.uint64(0x0101010101010101)) >> np.uint64(56)
