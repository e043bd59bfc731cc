"""Random numbers that depend on a key alone, such as a sample, its epoch and the seed.

numpy's generators take ten times as long to start as these take to draw, and may draw other numbers in another version,
which would change runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

Value = TypeVar("Value")

SPLITMIX64_STEP = np.uint64(0x9E3779B97F4A7C15)
_STEP = int(SPLITMIX64_STEP)
_MASK = 2**64 - 1
FEISTEL_ROUNDS = 8
"""Four are indistinguishable from a random permutation on large domains (Luby and Rackoff 1988); small ones need more.
"""


def hash_of(value: int, *key: int) -> int:
    """Hash one value as `hashes` does, in a few microseconds."""
    state = 0
    for part in key:
        state = _mixed(state + part + _STEP)
    return _mixed(value * _STEP + state + _STEP)


class Draws:
    """Independent random numbers, by SplitMix64 (Steele et al. 2014)."""

    def __init__(self, key: int):
        self._state = key

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """A number of [low, high)."""
        return low + (high - low) * (self._next() >> 11) * 2.0**-53

    def below(self, stop: int) -> int:
        """One of 0, 1, …, stop - 1."""
        return self._next() * stop >> 64

    def happens(self, probability: float) -> bool:
        """Whether something with this probability happens; if that is certain, nothing is drawn."""
        return probability > 0 and (probability >= 1 or self.uniform() < probability)

    def shuffled(self, values: Sequence[Value]) -> list[Value]:
        """The values in a random order."""
        left = list(values)
        return [left.pop(self.below(len(left))) for _ in values]

    def bytes(self, number: int) -> np.ndarray:
        """u8[number]: the bytes of the next numbers, lowest first."""
        steps = np.arange(1, -(-number // 8) + 1, dtype=np.uint64)
        drawn = mix_bits(np.uint64(self._state) + steps * SPLITMIX64_STEP)
        self._state = self._state + len(steps) * _STEP & _MASK
        return drawn.astype("<u8").view(np.uint8)[:number]

    def _next(self) -> int:
        self._state = self._state + _STEP & _MASK
        return _mixed(self._state)


def permutation(size: int, *key: int) -> np.ndarray:
    """i64[size]: a permutation that depends only on the size and the key.

    It sorts hashes instead of using numpy's generators, whose output may change between versions and then change runs.
    """
    return np.argsort(hashes(np.arange(size, dtype=np.uint64), *key), kind="stable")


def permuted(places: np.ndarray, sizes: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """i64: what a keyed permutation of 0, 1, …, size - 1 has at each place; it takes no memory for large sizes.

    A Feistel network permutes the next power of two, and is applied again to results that are not below the size.

    places, sizes: i64, 0 <= place < size.
    keys: u64; places with the same size and key belong to one permutation.
    """
    bits = np.maximum(2, np.frexp(sizes - 1.0)[1]).astype(np.uint64)
    shift = bits // np.uint64(2)
    masks = (np.uint64(1) << shift) - np.uint64(1), (np.uint64(1) << (bits - shift)) - np.uint64(1)
    found = places.astype(np.uint64)
    todo = np.arange(len(found))
    while len(todo):
        low, high = found[todo] & masks[0][todo], found[todo] >> shift[todo]
        for turn in range(1, FEISTEL_ROUNDS // 2 + 1):
            key = keys[todo] + np.uint64(turn * _STEP & _MASK)
            high = high ^ (mix_bits(mix_bits(key) + low) & masks[1][todo])
            low = low ^ (mix_bits(key ^ high) & masks[0][todo])
        found[todo] = high << shift[todo] | low
        todo = todo[found[todo] >= sizes[todo].astype(np.uint64)]
    return found.astype(np.int64)


def hashes(values: np.ndarray, *key: int) -> np.ndarray:
    """u64, one for each of `values`, keyed; by SplitMix64 (Steele et al. 2014)."""
    state = np.zeros(1, dtype=np.uint64)
    for part in key:
        state = mix_bits(state + np.uint64(part & 0xFFFFFFFFFFFFFFFF) + SPLITMIX64_STEP)
    return mix_bits(np.asarray(values, dtype=np.uint64) * SPLITMIX64_STEP + state + SPLITMIX64_STEP)


def mix_bits(values: np.ndarray) -> np.ndarray:
    """u64: the finaliser of SplitMix64, one-to-one, in which each bit of the input changes half of the output's."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


def _mixed(value: int) -> int:
    """`mix_bits` of one value, taken modulo 2**64."""
    value &= _MASK
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _MASK
    return value ^ (value >> 31)
