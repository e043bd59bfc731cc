"""How often each whole number was seen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pyarrow

LONGEST_CAPTION = 1 << 16


class Tally:
    """How often each whole number was seen; those above `largest` count as it."""

    def __init__(self, largest: int):
        self.counts = np.zeros(largest + 1, np.int64)

    def add(self, values: np.ndarray) -> None:
        self.counts += np.bincount(np.clip(values, 0, len(self.counts) - 1), minlength=len(self.counts))

    @property
    def total(self) -> int:
        return int(self.counts.sum())

    @property
    def num_different(self) -> int:
        return int(np.count_nonzero(self.counts))

    def quantile(self, share: float) -> int:
        """The smallest number that at least this share of all do not exceed."""
        return int(np.searchsorted(np.cumsum(self.counts), max(share * self.total, 1)))

    def add_counts(self, counts: Mapping[str, int]) -> None:
        """counts: as `nonzero` gave them."""
        for number, times in counts.items():
            self.counts[int(number)] += times

    @property
    def nonzero(self) -> dict[str, int]:
        """Number → how often, as JSON holds it."""
        return {str(number): int(self.counts[number]) for number in np.flatnonzero(self.counts)}


def add_lengths(captions: pyarrow.Array, characters: Tally, words: Tally) -> np.ndarray:
    """Count the lengths of captions in both tallies; i64: the characters of each. Words are what white space parts."""
    import pyarrow.compute as compute

    lengths = compute.utf8_length(captions).to_numpy(zero_copy_only=False).astype(np.int64)
    characters.add(lengths)
    words.add(compute.count_substring_regex(captions, r"\S+").to_numpy(zero_copy_only=False).astype(np.int64))
    return lengths
