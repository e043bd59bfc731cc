"""Random numbers that depend on a key alone, such as a sample, its epoch and the seed.

numpy's generators take ten times as long to start as these take to draw, and may draw other numbers in another version,
which would change runs.
"""

from __future__ import annotations

_STEP = 0x9E3779B97F4A7C15
_MASK = 2**64 - 1


def hash_of(value: int, *key: int) -> int:
    """Hash one value as `order.hashes` does, in a few microseconds."""
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

    def _next(self) -> int:
        self._state = self._state + _STEP & _MASK
        return _mixed(self._state)


def _mixed(value: int) -> int:
    """`order.mix_bits` of one value, taken modulo 2**64."""
    value &= _MASK
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _MASK
    return value ^ (value >> 31)
