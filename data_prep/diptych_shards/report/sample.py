"""A few of many rows, chosen the same way every time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import numpy as np

from diptych.data.order import SPLITMIX64_STEP, mix_bits

Item = TypeVar("Item")


def shuffled_places(seed: int, shard: int, rows: np.ndarray) -> np.ndarray:
    """u64: for each row of a shard, its place in a random order of all rows that the seed alone decides."""
    of_seed = np.array([seed % 2**31], np.uint64) * SPLITMIX64_STEP
    return mix_bits(rows.astype(np.uint64) + np.uint64((shard + 1) << 32) + of_seed)


class Smallest(Generic[Item]):
    """The items with the smallest values, among equals the first in the shuffled order; whatever order they come in.

    With one value for all, this is a uniform sample without replacement.
    """

    def __init__(self, size: int):
        self._size = size
        self._found: list[tuple[float, int, Item]] = []

    def offer(self, values: np.ndarray, places: np.ndarray, item: Callable[[int], Item]) -> None:
        """item: makes the one at a position, asked only for those that get in."""
        if len(self._found) == self._size and self._size:
            value, place, _ = self._found[-1]
            candidates = np.flatnonzero((values < value) | ((values == value) & (places < place)))
        else:
            candidates = np.arange(len(values))
        order = np.lexsort((places[candidates], values[candidates]))[: self._size]
        for position in candidates[order].tolist():
            self._found.append((float(values[position]), int(places[position]), item(position)))
        self._found = sorted(self._found, key=lambda found: found[:2])[: self._size]

    @property
    def items(self) -> list[Item]:
        return [item for _, _, item in self._found]
