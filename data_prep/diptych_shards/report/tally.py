"""Counts that one pass over many rows keeps in bounded memory: lengths of captions, repeated files, some rows."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np

from diptych.data.draws import SPLITMIX64_STEP, mix_bits
from diptych.data.shard_index_file import PICTURE_SUFFIXES
from diptych.data.shards import ShardIndex
from diptych.pages.histograms import Tally

if TYPE_CHECKING:
    import pyarrow

Item = TypeVar("Item")

LONGEST_CAPTION = 1 << 16
MAX_FILES = 100_000
"""When twice as many files are known, all but these are forgotten: those seen least."""


def add_lengths(captions: pyarrow.Array, characters: Tally, words: Tally) -> np.ndarray:
    """Count the lengths of captions in both tallies; i64: the characters of each. White space separates words."""
    import pyarrow.compute as compute

    lengths: np.ndarray = compute.utf8_length(captions).to_numpy(zero_copy_only=False).astype(np.int64)
    characters.add(lengths)
    words.add(compute.count_substring_regex(captions, r"\S+").to_numpy(zero_copy_only=False).astype(np.int64))
    return lengths


@dataclass
class Repeated:
    """A picture file: the first sample that has it, and how many have it."""

    shard: int
    sample: int
    times: int = 1


class RepeatedFiles:
    """Counts picture files that are the same byte for byte, in bounded memory."""

    def __init__(self) -> None:
        self._seen: dict[int, Repeated] = {}

    def add(self, shard: int, index: ShardIndex) -> None:
        """shard: its number in the report. index: of that shard alone."""
        for number, sample in enumerate(index.samples()):
            for member in sample.members:
                if member.suffix in PICTURE_SUFFIXES:
                    known = self._seen.setdefault(member.xxh3, Repeated(shard, number, 0))
                    known.times += 1
        if len(self._seen) > 2 * MAX_FILES:
            kept = heapq.nlargest(MAX_FILES, self._seen.items(), key=lambda item: item[1].times)
            self._seen = dict(kept)

    def most_frequent(self, number: int) -> list[Repeated]:
        """Files that occur more than once, most frequent first."""
        repeated = (each for each in self._seen.values() if each.times > 1)
        return heapq.nsmallest(number, repeated, key=lambda each: (-each.times, each.shard, each.sample))


def shuffled_places(seed: int, shard: int, rows: np.ndarray) -> np.ndarray:
    """The place of each row of a shard in a random order of all rows, as u64; the order depends on the seed alone."""
    of_seed = np.array([seed % 2**31], np.uint64) * SPLITMIX64_STEP
    return mix_bits(rows.astype(np.uint64) + np.uint64((shard + 1) << 32) + of_seed)


class Smallest(Generic[Item]):
    """Keeps the items with the smallest values, and of equal ones the first in the shuffled order.

    The result does not depend on the order of the offers. If all values are equal, it is a uniform sample without
    replacement.
    """

    def __init__(self, size: int):
        self._size = size
        self._found: list[tuple[float, int, Item]] = []

    def offer(self, values: np.ndarray, places: np.ndarray, item: Callable[[int], Item]) -> None:
        """Offer some items. item: makes the item at a position; it is called only for those that are kept."""
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
