"""Which queries captions contain, by MetaCLIP's rule.

The rule (Xu et al. 2023, "Demystifying CLIP Data", section 3): a caption gets one space at both ends, a space on both
sides of each of , . ; : ? ! and the backtick, and spaces for tabs and line ends. A query is found if the caption then
contains `" " + query + " "`, case-sensitively. Queries that overlap all count; each counts once a caption.

Both sides are thus lists of words between single spaces, some of them empty, and a caption contains a query if the
query's words follow one another in it. So each word of many captions is looked up once, and arrays then follow all
sequences of words in a tree of the queries: the time does not depend on the number of queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, repeat

import numpy as np

_REPLACEMENTS = {**{mark: f" {mark} " for mark in ",.;:?!`"}, **dict.fromkeys("\t\r\n", " ")}
_END = "\n"
"""A word that no caption contains: it ends each of them."""


def spaced(caption: str) -> str:
    """The caption as the rule spaces it, for the search of queries."""
    for sign, replacement in _REPLACEMENTS.items():
        caption = caption.replace(sign, replacement)
    return f" {caption} "


@dataclass(frozen=True)
class Matches:
    """The numbers of the queries that each caption contains, ascending."""

    ids: np.ndarray
    """int32, caption after caption."""
    offsets: np.ndarray
    """int64: those of caption i are ids[offsets[i] : offsets[i + 1]]."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, caption: int) -> np.ndarray:
        return self.ids[self.offsets[caption] : self.offsets[caption + 1]]

    @classmethod
    def none(cls, num_captions: int) -> Matches:
        return cls(np.zeros(0, np.int32), np.zeros(num_captions + 1, np.int64))

    @property
    def counts(self) -> np.ndarray:
        """How many queries each caption contains."""
        return np.diff(self.offsets)

    def only(self, captions: np.ndarray) -> Matches:
        """The matches of some captions, a boolean for each; the others have none."""
        counts = np.where(captions, self.counts, 0)
        return Matches(self.ids[np.repeat(captions, self.counts)], np.concatenate([[0], np.cumsum(counts)]))


class Matcher:
    """Finds queries in captions; the number of a query is its place in the list.

    A node of the tree is a sequence of words with which a query starts. Nodes of one word are numbered as words, nodes
    of n words as the sorted keys of their last step: the number of the node of n - 1 words, then that of the word.
    """

    def __init__(self, queries: Sequence[str]):
        """queries: different ones, none empty."""
        self._num_queries = len(queries)
        self._words: dict[str, int] = {}
        numbers = [[self._words.setdefault(word, len(self._words)) for word in query.split(" ")] for query in queries]
        self._words.pop(_END, None)
        self._num_words = len(self._words) + 1
        lengths = np.fromiter(map(len, numbers), np.int64, len(numbers))
        words = np.fromiter(chain.from_iterable(numbers), np.int64)
        starts = np.cumsum(lengths) - lengths
        nodes = words[starts]
        self._steps: list[np.ndarray] = []
        self._ends = [_queries_at(nodes, lengths == 1, self._num_words)]
        """For each node the query that is just these words, or -1; by the number of words."""
        for length in range(2, lengths.max(initial=1) + 1):
            longer = np.flatnonzero(lengths >= length)
            keys = nodes[longer] * self._num_words + words[starts[longer] + length - 1]
            steps, nodes[longer] = np.unique(keys, return_inverse=True)
            self._steps.append(steps)
            self._ends.append(_queries_at(nodes, lengths == length, len(steps)))

    def match(self, captions: Sequence[str]) -> Matches:
        texts = [f"{spaced(caption)[1:]}{_END}" for caption in captions]
        words = np.fromiter(map(self._words.get, " ".join(texts).split(" "), repeat(-1)), np.int64)
        caption_of = np.repeat(np.arange(len(texts)), [text.count(" ") + 1 for text in texts])
        places = np.flatnonzero(words[: len(caption_of)] >= 0)
        nodes = words[places]
        found = []
        for ends, steps in zip(self._ends, [*self._steps, None], strict=True):
            queries = ends[nodes]
            is_query = queries >= 0
            found.append(caption_of[places[is_query]] * self._num_queries + queries[is_query])
            if steps is None:
                break
            places = places + 1
            goes_on = words[places] >= 0
            places = places[goes_on]
            keys = nodes[goes_on] * self._num_words + words[places]
            nodes = np.minimum(np.searchsorted(steps, keys), len(steps) - 1)
            is_step = steps[nodes] == keys
            places, nodes = places[is_step], nodes[is_step]
        keys = np.sort(np.concatenate(found))
        keys = keys[np.append(True, keys[1:] != keys[:-1])[: len(keys)]]
        offsets = np.searchsorted(keys, np.arange(len(texts) + 1) * self._num_queries)
        return Matches((keys % max(self._num_queries, 1)).astype(np.int32), offsets)


def _queries_at(nodes: np.ndarray, is_end: np.ndarray, num_nodes: int) -> np.ndarray:
    """For each node the query that ends there, or -1."""
    queries = np.full(num_nodes, -1)
    queries[nodes[is_end]] = np.flatnonzero(is_end)
    return queries
