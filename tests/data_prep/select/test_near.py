"""The banded search finds every pair that comparing all finds, and no other."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych_shards.select import near
from diptych_shards.select.near import masks, near_pairs, num_bits, num_blocks


@st.composite
def crowds(draw):
    """Distinct hashes, many of them a few bits from each other."""
    centres = draw(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=4))
    flips = draw(st.lists(st.tuples(st.integers(0, 3), st.sets(st.integers(0, 63), max_size=7)), max_size=25))
    found = {*centres, *(centres[n % len(centres)] ^ sum(1 << bit for bit in bits) for n, bits in flips)}
    return np.array(sorted(found), np.uint64)


def brute_force(hashes, distance):
    values = hashes.tolist()
    return {
        (a, b) for b in range(len(values)) for a in range(b) if (values[a] ^ values[b]).bit_count() <= distance
    }  # fmt: skip


def found(hashes, distance):
    pairs = [np.stack(pair, 1) for pair in near_pairs(hashes, distance)]
    return {tuple(sorted(pair)) for part in pairs for pair in part.tolist()}


@settings(max_examples=150, deadline=None)
@given(crowds(), st.integers(0, 6), st.integers(1, 5))
def test_all_near_pairs_are_found_and_no_others_however_many_blocks(hashes, distance, more):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near, "num_blocks", lambda *_: distance + more)
        assert found(hashes, distance) == brute_force(hashes, distance)


def test_a_large_crowd_with_planted_neighbours():
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, 5_000, dtype=np.uint64)
    for place in range(0, 2_000, 2):
        bits = rng.choice(64, size=rng.integers(1, 7), replace=False)
        hashes[place + 1] = hashes[place] ^ np.uint64(sum(1 << int(bit) for bit in bits))
    hashes = np.unique(hashes)
    differing = hashes[:, None] ^ hashes[None]
    expected = set(map(tuple, np.argwhere(np.triu(num_bits(differing) <= 4, 1)).tolist()))
    assert len(expected) > 500
    assert found(hashes, 4) == expected


def test_five_blocks_are_the_fewest_for_four_bits_and_more_hashes_get_more():
    assert num_blocks(100, 4) == 5
    assert num_blocks(10_000_000, 4) > num_blocks(100_000, 4) >= 5
    assert [len(masks(blocks, 4)) for blocks in (5, 6, 7)] == [5, 15, 35]


@given(st.lists(st.integers(0, 2**64 - 1)))
def test_bits_are_counted(values):
    assert num_bits(np.array(values, np.uint64)).tolist() == [value.bit_count() for value in values]
