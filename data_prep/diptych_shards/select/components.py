"""Which things belong together when pairs of them do: connected components, a few million pairs at a time."""

from __future__ import annotations

import numpy as np


class Components:
    """`total` things, each alone at first; a component goes by the smallest of its members."""

    def __init__(self, total: int):
        self._above = np.arange(total, dtype=np.int32 if total < 2**31 else np.int64)

    def join(self, one: np.ndarray, other: np.ndarray) -> None:
        """Put the components of each pair together."""
        while len(one):
            one, other = self.roots(one), self.roots(other)
            differ = one != other
            low, high = np.minimum(one, other)[differ], np.maximum(one, other)[differ]
            np.minimum.at(self._above, high, low)
            self._flatten(high)
            one, other = low, high

    def roots(self, things: np.ndarray) -> np.ndarray:
        """The smallest member of the component of each thing."""
        found = self._above[things]
        while len(found):
            above = self._above[found]
            if (above == found).all():
                break
            found = above
        return found

    def all_roots(self) -> np.ndarray:
        """Of every thing."""
        self._flatten(slice(None))
        return self._above

    def _flatten(self, things: np.ndarray | slice) -> None:
        """Let these point straight to their roots: each round halves the way there."""
        while True:
            above = self._above[self._above[things]]
            if (above == self._above[things]).all():
                return
            self._above[things] = above
