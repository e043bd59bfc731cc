"""Which queries stand in which captions, by MetaCLIP's rule, without ever writing the spaced text.

The rule (Xu et al. 2023, "Demystifying CLIP Data", section 3): a caption gets one space at both ends, a space on both
sides of each of , . ; : ? ! and the backtick, and spaces for tabs and line ends; a query stands in it where
`" " + query + " "` does, case-sensitively. Queries that overlap all count; each counts once a caption.

Both sides are thus lists of words between single spaces, some of them empty, and a query stands in a caption where its
words follow one another. So one pass over the bytes looks up each word in a hash table, and goes on from there in a
tree of words: the time does not depend on the number of queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow

from diptych_shards.curate.word_tree import BLOCK_WORDS, build_tree, match_captions

_SPACED = str.maketrans({**{mark: f" {mark} " for mark in ",.;:?!`"}, **dict.fromkeys("\t\r\n", " ")})


def spaced(caption: str) -> str:
    """The caption as queries are looked for in it."""
    return f" {caption.translate(_SPACED)} "


@dataclass(frozen=True)
class Matches:
    """Of each caption the numbers of the queries that stand in it, none twice, in the order in which they end."""

    ids: np.ndarray
    """int32, caption after caption."""
    offsets: np.ndarray
    """int64: those of caption i are ids[offsets[i] : offsets[i + 1]]."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, caption: int) -> np.ndarray:
        return self.ids[self.offsets[caption] : self.offsets[caption + 1]]

    @property
    def counts(self) -> np.ndarray:
        """How many queries stand in each caption."""
        return np.diff(self.offsets)

    def only(self, captions: np.ndarray) -> Matches:
        """The same captions, but only some of them, a boolean for each, with what stands in them."""
        counts = np.where(captions, self.counts, 0)
        return Matches(self.ids[np.repeat(captions, self.counts)], np.concatenate([[0], np.cumsum(counts)]))


class Matcher:
    """Finds queries in captions; the number of a query is its place in the list."""

    def __init__(self, queries: Sequence[str]):
        """queries: each must be there once, none empty."""
        self.num_queries = len(queries)
        self._tree = build_tree(*_bytes_of(queries))
        self._last_seen = np.full(len(queries), -1, np.int64)
        """The number of the last caption that held the query."""
        self._captions_seen = 0

    def match(self, captions: Sequence[str] | pyarrow.Array) -> Matches:
        data, offsets = _bytes_of(captions)
        ends = np.zeros(len(offsets), np.int64)
        ids = np.empty(BLOCK_WORDS * self._tree.longest + len(data) // 4, np.int32)
        done = 0
        while True:
            done = match_captions(data, offsets, self._tree, self._last_seen, self._captions_seen, ids, ends, done)
            self._captions_seen += len(offsets)
            if done == len(offsets) - 1:
                return Matches(ids[: ends[done]].copy(), ends)
            ids = np.concatenate([ids, np.empty_like(ids)])

    @property
    def num_bytes(self) -> int:
        """Of memory."""
        return sum(part.nbytes for part in self._tree if isinstance(part, np.ndarray)) + self._last_seen.nbytes


def _bytes_of(texts: Sequence[str] | pyarrow.Array) -> tuple[np.ndarray, np.ndarray]:
    """The texts' UTF-8, one after the other, and where each begins, then where the last ends."""
    array = texts if isinstance(texts, pyarrow.Array) else pyarrow.array(texts, pyarrow.large_string())
    array = array.cast(pyarrow.large_string())
    _, offsets, data = array.buffers()
    if len(array) == 0:
        return np.zeros(0, np.uint8), np.zeros(1, np.int64)
    starts = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1]
    return np.frombuffer(data, np.uint8) if data else np.zeros(0, np.uint8), starts
