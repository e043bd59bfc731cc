"""How many pairs a query keeps: MetaCLIP's formula (Xu et al. 2023, "Demystifying CLIP Data", algorithm 1).

A query that `count` captions contain keeps each of them with probability p = t / max(count, t), independently. A pair
is kept if any of its queries keeps it: P = 1 - product(1 - p). The published code draws once for each query of a pair,
without a seed. Here one number, hashed from the pair, is compared with P: the probability is the same, and the same
pairs are kept every time, in any order of the input.

Nothing else limits what a query keeps. A query of more than t captions keeps t of them on average by its own draws, and
in addition those that rarer queries in the same captions keep.
"""

from __future__ import annotations

import numpy as np

from diptych.data.draws import SPLITMIX64_STEP, mix_bits
from diptych_shards.curate.matching import Matches


def query_probabilities(counts: np.ndarray, pairs_per_query: int) -> np.ndarray:
    """The probability that each query keeps a pair whose caption contains it. counts: captions that contain it."""
    probabilities: np.ndarray = pairs_per_query / np.maximum(counts, pairs_per_query)
    return probabilities


def keep_probabilities(matches: Matches, probabilities: np.ndarray) -> np.ndarray:
    """The probability that any of a pair's queries keeps it, for each pair; 0 if its caption contains none."""
    lost = np.ones(len(matches))
    # One factor after the other: a product of a whole array may round differently on another processor.
    for number in range(matches.counts.max(initial=0)):
        pairs = np.flatnonzero(matches.counts > number)
        lost[pairs] *= 1 - probabilities[matches.ids[matches.offsets[pairs] + number]]
    return 1 - lost


def uniforms(pair_hashes: np.ndarray, seed: int) -> np.ndarray:
    """Draw a number in [0, 1) for each pair, from its hash and the seed alone; different seeds draw independently.

    pair_hashes: uint64.
    """
    mixed: np.ndarray = mix_bits(pair_hashes + mix_bits(np.array([seed], np.uint64) + SPLITMIX64_STEP))
    drawn: np.ndarray = (mixed >> np.uint64(11)) * 2.0**-53
    return drawn
