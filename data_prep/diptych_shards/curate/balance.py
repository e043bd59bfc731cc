"""How many pairs a query keeps: MetaCLIP's formula (Xu et al. 2023, "Demystifying CLIP Data", algorithm 1).

A query that stands in count captions keeps each of them with probability p = t / max(count, t), independently; a pair
is kept if any of its queries keeps it: P = 1 - product(1 - p). The published code draws once for each query of a pair,
without a seed. One number of the pair itself, compared with P, keeps a pair with the same probability, and the same
pairs every time, whatever their order.

The formula is all there is: no cap is put on what a query keeps. A query of more than t captions keeps t of its own
draws on average, and whatever rarer queries in the same captions keep beside that.
"""

from __future__ import annotations

import numpy as np

from diptych.data.order import SPLITMIX64_STEP, mix_bits
from diptych_shards.curate.compiled import compiled
from diptych_shards.curate.matching import Matches


def query_probabilities(counts: np.ndarray, pairs_per_query: int) -> np.ndarray:
    """Of each query, that it keeps a pair in which it stands. counts: captions that hold it."""
    return pairs_per_query / np.maximum(counts, pairs_per_query)


def keep_probabilities(matches: Matches, probabilities: np.ndarray) -> np.ndarray:
    """Of each pair, that any of its queries keeps it; 0 where none stands in its caption."""
    return _keep_probabilities(matches.ids, matches.offsets, probabilities)


def uniforms(pair_hashes: np.ndarray, seed: int) -> np.ndarray:
    """A number in [0, 1) of each pair, from its hash and the seed alone.

    pair_hashes: uint64. Of different seeds the numbers of a pair have nothing to do with each other.
    """
    mixed = mix_bits(pair_hashes + mix_bits(np.array([seed], np.uint64) + SPLITMIX64_STEP))
    return (mixed >> np.uint64(11)) * 2.0**-53


@compiled
def _keep_probabilities(ids, offsets, probabilities):
    # Multiplied one after the other: a vectorised product may round differently on another processor.
    result = np.zeros(len(offsets) - 1)
    for pair in range(len(result)):
        lost = 1.0
        for place in range(offsets[pair], offsets[pair + 1]):
            lost *= 1.0 - probabilities[ids[place]]
        result[pair] = 1.0 - lost
    return result
