"""Which pictures a block list refuses."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diptych_shards.pictures.perceptual_hash import distance
from diptych_shards.shard_build.options import BuildOptions

hashes = st.integers(0, 2**64 - 1)


@given(blocked=st.lists(hashes, max_size=5), seen=hashes, flips=st.sets(st.integers(0, 63), max_size=7))
def test_a_hash_within_the_distance_of_a_blocked_one_is_refused_and_no_other(blocked, seen, flips):
    near = seen
    for bit in flips:
        near ^= 1 << bit
    options = BuildOptions(blocked_phash=(*blocked, near), phash_distance=4)
    assert options.blocks(seen) == any(distance(seen, other) <= 4 for other in options.blocked_phash)


@pytest.mark.parametrize(("options", "seen"), [(BuildOptions(), 5), (BuildOptions(blocked_phash=(5,)), None)])
def test_nothing_is_refused_without_a_list_or_without_a_hash(options, seen):
    assert not options.blocks(seen)
