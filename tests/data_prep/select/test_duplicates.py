"""Groups and survivors, against a naive count of all pairs."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych_shards.select.duplicates import NOTHING, REASONS, Duplicates, classes, repeated

DROPPED, IN_EVALUATION = REASONS.index("chain_of_similar"), REASONS.index("in_evaluation")


@st.composite
def pictures(draw):
    """Hashes a few bits from one another, some equal; how many are of evaluation sets; a preference or none."""
    flips = st.sets(st.integers(0, 63), max_size=4)
    centre = draw(st.integers(0, 2**64 - 1))
    hashes = draw(st.lists(flips.map(lambda bits: centre ^ sum(1 << bit for bit in bits)), min_size=1, max_size=14))
    num_evaluation = draw(st.integers(0, len(hashes)))
    values = st.one_of(st.integers(0, 2).map(float), st.just(np.nan))
    num_samples = len(hashes) - num_evaluation
    preference = draw(st.one_of(st.none(), st.lists(values, min_size=num_samples, max_size=num_samples)))
    return hashes, num_evaluation, preference


def naive(hashes, num_evaluation, preference, distance):
    """What each sample is like: the first evaluation picture, the survivor of its group, or nothing."""
    near = [[(a ^ b).bit_count() <= distance for b in hashes] for a in hashes]
    total = len(hashes)
    group = list(range(total))
    for one in range(num_evaluation, total):
        for other in range(num_evaluation, total):
            if near[one][other]:
                low, high = sorted((group[one], group[other]))
                group = [low if each == high else each for each in group]
    clean = [n for n in range(num_evaluation, total) if not any(near[n][:num_evaluation])]

    def rank(sample):
        value = 0.0 if preference is None else preference[sample - num_evaluation]
        return (-np.inf if np.isnan(value) else value, -sample)

    like = []
    for sample in range(num_evaluation, total):
        if sample not in clean:
            like.append(next(n for n in range(num_evaluation) if near[sample][n]))
            continue
        best = max((n for n in clean if group[n] == group[sample]), key=rank)
        like.append(NOTHING if best == sample else best)
    return like


@settings(max_examples=300, deadline=None)
@given(pictures(), st.integers(0, 4))
def test_samples_are_left_out_as_comparing_all_with_all_would(found, distance):
    hashes, num_evaluation, preference = found
    duplicates = Duplicates(num_evaluation, len(hashes) - num_evaluation)
    duplicates.add_near(np.arange(len(hashes)), np.array(hashes, np.uint64), distance)
    decision = duplicates.decide(None if preference is None else np.array(preference))
    expected = naive(hashes, num_evaluation, preference, distance)
    assert decision.like.tolist() == expected
    codes = [0 if n == NOTHING else IN_EVALUATION if n < num_evaluation else DROPPED for n in expected]
    assert decision.codes.tolist() == codes


@settings(max_examples=100, deadline=None)
@given(pictures())
def test_pairs_one_by_one_say_the_same_as_hashes(found):
    hashes, num_evaluation, _ = found
    pairs = [(b, a) for a in range(len(hashes)) for b in range(a) if (hashes[a] ^ hashes[b]).bit_count() <= 4]
    duplicates = Duplicates(num_evaluation, len(hashes) - num_evaluation)
    for one, other in reversed(pairs):
        duplicates.add_pairs(np.array([other]), np.array([one]))
    assert duplicates.decide(None).like.tolist() == naive(hashes, num_evaluation, None, 4)


@given(st.lists(st.tuples(*[st.integers(0, 1)] * 4), max_size=30))
def test_classes_are_those_of_whole_digests(digests):
    found = classes(np.array(digests, np.uint64).reshape(-1, 4)).tolist()
    assert [[a == b for b in found] for a in found] == [[a == b for b in digests] for a in digests]
    prefixes = np.array([digest[0] for digest in digests], np.uint64)
    places = np.arange(len(digests))
    assert repeated(prefixes, places).tolist() == [n for n in places if (prefixes == prefixes[n]).sum() > 1]
