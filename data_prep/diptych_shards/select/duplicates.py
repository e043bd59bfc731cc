"""Which pictures are the same, and which of them are left out.

Positions number all pictures: first those of evaluation sets, then the samples in the order of their shards. What is
like a picture of an evaluation set is left out; of the others that are connected by pairs of equal ones, one stays.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diptych_shards.select.components import Components
from diptych_shards.select.near import near_pairs

SAME_PIXELS = "same_pixels"
SIMILAR_LOOK = "similar_look"
SIMILAR_EMBEDDING = "similar_embedding"
CHAIN = "chain_of_similar"
IN_EVALUATION = "in_evaluation"
REASONS = ("", SAME_PIXELS, SIMILAR_LOOK, SIMILAR_EMBEDDING, CHAIN, IN_EVALUATION)
"""Their places are the codes of `Decision`."""
MEANINGS = {
    SAME_PIXELS: "the same pixels as a sample that stays",
    SIMILAR_LOOK: "looks like a sample that stays: the same picture, recoded or resized",
    SIMILAR_EMBEDDING: "its embedding nearly agrees with that of a sample that stays",
    CHAIN: "like a sample that is like another one, and so on to one that stays",
    IN_EVALUATION: "like a picture of an evaluation set",
}

NOTHING = -1
_FAR = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Decision:
    """Of every sample."""

    codes: np.ndarray
    """u8: place in REASONS. What is left out is CHAIN or IN_EVALUATION until somebody has looked closer."""
    like: np.ndarray
    """i64: position of what it is like; NOTHING for what is kept."""


class Duplicates:
    """Gathers what is alike, then decides."""

    def __init__(self, num_evaluation: int, num_samples: int):
        self._num_evaluation = num_evaluation
        self._components = Components(num_evaluation + num_samples)
        self._evaluation_of = np.full(num_evaluation + num_samples, _FAR, np.int64)

    def add_pairs(self, one: np.ndarray, other: np.ndarray) -> None:
        """Positions of pictures that are alike."""
        low, high = np.minimum(one, other), np.maximum(one, other)
        are_samples = low >= self._num_evaluation
        self._components.join(low[are_samples], high[are_samples])
        is_met = ~are_samples & (high >= self._num_evaluation)
        np.minimum.at(self._evaluation_of, high[is_met], low[is_met])

    def add_near(self, positions: np.ndarray, hashes: np.ndarray, max_distance: int) -> None:
        """Pictures with a u64 hash each, alike if it differs in at most so many bits."""
        distinct, place = np.unique(hashes, return_inverse=True)
        are_samples = positions >= self._num_evaluation
        first_sample = _first(positions[are_samples], place[are_samples], len(distinct))
        first_evaluation = _first(positions[~are_samples], place[~are_samples], len(distinct))
        samples, place = positions[are_samples], place[are_samples]
        self._components.join(first_sample[place], samples)

        reached = first_evaluation.copy()
        for one, other in near_pairs(distinct, max_distance):
            np.minimum.at(reached, one, first_evaluation[other])
            np.minimum.at(reached, other, first_evaluation[one])
            have_samples = (first_sample[one] != _FAR) & (first_sample[other] != _FAR)
            self._components.join(first_sample[one[have_samples]], first_sample[other[have_samples]])
        self._evaluation_of[samples] = np.minimum(self._evaluation_of[samples], reached[place])

    def decide(self, preference: np.ndarray | None) -> Decision:
        """preference: f64 of each sample; the highest of a group stays, the first of those. NaN is the lowest."""
        first = self._num_evaluation
        evaluation_of = self._evaluation_of[first:]
        is_clean = evaluation_of == _FAR
        group = self._components.all_roots()[first:] - first
        order = np.flatnonzero(is_clean)
        if preference is not None:
            order = order[np.argsort(-np.nan_to_num(preference[order], nan=-np.inf), kind="stable")]
        _, firsts = np.unique(group[order], return_index=True)
        staying = order[firsts]

        survivor_of_group = np.full(len(group), NOTHING, np.int64)
        survivor_of_group[group[staying]] = staying + first
        like = np.where(is_clean, survivor_of_group[group], evaluation_of)
        like[staying] = NOTHING
        codes = np.where(is_clean, REASONS.index(CHAIN), REASONS.index(IN_EVALUATION)).astype(np.uint8)
        codes[staying] = 0
        return Decision(codes, like)


def repeated(prefixes: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Those of the positions whose prefix is not alone, in order."""
    found, place, times = np.unique(prefixes, return_inverse=True, return_counts=True)
    return positions[times[place] > 1]


def _first(positions: np.ndarray, places: np.ndarray, num_places: int) -> np.ndarray:
    """i64[num_places]: the smallest position at each place."""
    found = np.full(num_places, _FAR, np.int64)
    np.minimum.at(found, places, positions)
    return found


def classes(digests: np.ndarray) -> np.ndarray:
    """u64 for each row of u64[n, 4]; equal for equal rows, and only for them."""
    if not len(digests):
        return np.zeros(0, np.uint64)
    order = np.lexsort(digests.T)
    changes = (digests[order[1:]] != digests[order[:-1]]).any(axis=1)
    found = np.empty(len(digests), np.uint64)
    found[order] = np.concatenate([[0], np.cumsum(changes)]).astype(np.uint64)
    return found
