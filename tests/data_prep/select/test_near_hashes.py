"""The banded search finds every pair that comparing all finds, and no other."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych_shards.select import near_hashes
from diptych_shards.select.near_hashes import NearHashes, cut, near_pairs, num_blocks


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
    pairs = [tuple(sorted(pair)) for part in near_pairs(hashes, distance) for pair in np.stack(part, 1).tolist()]
    assert len(pairs) == len(set(pairs))
    return set(pairs)


@settings(max_examples=60, deadline=None)
@given(crowds(), st.integers(0, 6), st.integers(1, 5))
def test_all_near_pairs_are_found_and_no_others_however_many_blocks(hashes, distance, more):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near_hashes, "num_blocks", lambda *_: distance + more)
        assert found(hashes, distance) == brute_force(hashes, distance)


def test_a_large_crowd_with_planted_neighbours():
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, 2_000, dtype=np.uint64)
    for place in range(0, 1_500, 2):
        bits = rng.choice(64, size=rng.integers(1, 7), replace=False)
        hashes[place + 1] = hashes[place] ^ np.uint64(sum(1 << int(bit) for bit in bits))
    hashes = np.unique(hashes)
    differing = hashes[:, None] ^ hashes[None]
    expected = set(map(tuple, np.argwhere(np.triu(np.bitwise_count(differing) <= 4, 1)).tolist()))
    assert len(expected) > 300
    assert found(hashes, 4) == expected


def random_hashes(total, free_bits):
    """Hashes that differ in so many bits and share the others."""
    rng = np.random.default_rng(0)
    hashes = np.full(total, rng.integers(2**64, dtype=np.uint64))
    for bit in rng.permutation(64)[:free_bits].tolist():
        hashes ^= rng.integers(0, 2, total).astype(np.uint64) << np.uint64(bit)
    return np.unique(hashes)


def test_more_hashes_are_cut_into_more_blocks_and_so_are_those_that_share_bits():
    assert num_blocks(random_hashes(100, 64), 4) == 5
    few, many = random_hashes(10_000, 64), random_hashes(400_000, 64)
    assert num_blocks(many, 4) > num_blocks(few, 4)
    assert num_blocks(random_hashes(10_000, 24), 4) > num_blocks(few, 4)


@given(st.lists(st.integers(0, 2**64 - 1), max_size=20), st.integers(1, 9))
def test_every_bit_is_in_one_block(hashes, blocks):
    cuts = cut(np.array(hashes, np.uint64), blocks)
    assert len(cuts) == blocks and sum(map(int, cuts)) == 2**64 - 1


def test_bits_that_all_hashes_share_are_dealt_evenly_to_the_blocks():
    hashes = random_hashes(5_000, 32)
    free = int(np.bitwise_or.reduce(hashes ^ hashes[0]))
    assert {(int(block) & free).bit_count() for block in cut(hashes, 8)} == {4}


def test_neighbours_are_found_among_hashes_that_share_most_of_their_bits():
    hashes = random_hashes(1_500, 20)
    assert found(hashes, 4) == brute_force(hashes, 4) != set()


@settings(max_examples=50, deadline=None)
@given(crowds(), crowds(), st.integers(0, 5), st.integers(1, 9))
def test_hashes_near_to_others_are_found_and_no_others_however_few_pairs_fit_in_memory(own, others, distance, at_once):
    others = np.append(others, own[:3] ^ np.uint64(5))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near_hashes, "_PAIRS_AT_ONCE", at_once)
        near = {tuple(pair) for part in NearHashes(own, distance).pairs(others) for pair in np.stack(part, 1).tolist()}
    expected = np.bitwise_count(own[:, None] ^ others[None]) <= distance
    assert near == set(map(tuple, np.argwhere(expected).tolist()))
