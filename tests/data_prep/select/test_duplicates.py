"""What stays and what is left out, against comparing each with each in order of preference."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych_shards.select.duplicates import (
    MOST_DIFFERENCE,
    NOTHING,
    REASONS,
    Duplicates,
    LookAlikes,
    classes,
    repeated,
)


@st.composite
def pictures(draw):
    """Hashes a few bits from one another, some equal; a colour, classes of equal pixels, pairs of agreeing embeddings;
    how many are of evaluation sets; a preference or none.
    """
    flips = st.sets(st.integers(0, 63), max_size=4)
    centre = draw(st.integers(0, 2**64 - 1))
    hashes = draw(st.lists(flips.map(lambda bits: centre ^ sum(1 << bit for bit in bits)), min_size=1, max_size=14))
    total = len(hashes)
    colours = draw(st.lists(st.sampled_from((0, 5, 10, 15, 200)), min_size=total, max_size=total))
    copy_of = [draw(st.sampled_from((n, n, n, *range(n)))) for n in range(total)]
    for n, original in enumerate(copy_of):  # copies have all of their original
        copy_of[n] = copy_of[original]
        hashes[n], colours[n] = hashes[copy_of[n]], colours[copy_of[n]]
    pairs = draw(st.lists(st.tuples(st.integers(0, total - 1), st.integers(0, total - 1)), max_size=6))
    num_evaluation = draw(st.integers(0, total))
    values = st.one_of(st.integers(0, 2).map(float), st.just(np.nan))
    num_samples = total - num_evaluation
    preference = draw(st.one_of(st.none(), st.lists(values, min_size=num_samples, max_size=num_samples)))
    return hashes, colours, copy_of, pairs, num_evaluation, preference


def naive(hashes, colours, copy_of, pairs, num_evaluation, preference, distance):
    """(reason, what it is like) of each sample."""

    def is_pair(one, other):
        return any({copy_of[a], copy_of[b]} == {copy_of[one], copy_of[other]} for a, b in pairs)

    def how(one, other):
        if copy_of[one] == copy_of[other]:
            return "same_pixels"
        if (hashes[one] ^ hashes[other]).bit_count() <= distance and abs(colours[one] - colours[other]) <= 6:
            return "looks_the_same"
        return "similar_embedding" if is_pair(one, other) else ""

    def rank(sample):
        value = 0.0 if preference is None else preference[sample - num_evaluation]
        return (np.inf if np.isnan(value) else -value, sample)

    staying = list(range(num_evaluation))
    found = {}
    for sample in sorted(range(num_evaluation, len(hashes)), key=rank):
        like = next((other for other in staying if how(sample, other) == "same_pixels"), None)
        like = next((other for other in staying if how(sample, other)), None) if like is None else like
        if like is None:
            staying.append(sample)
            found[sample] = ("", NOTHING)
        else:
            found[sample] = ("in_evaluation" if like < num_evaluation else how(sample, like), like)
    return [found[sample] for sample in range(num_evaluation, len(hashes))]


@settings(max_examples=80, deadline=None)
@given(pictures(), st.integers(0, 4))
def test_samples_are_left_out_as_comparing_each_with_those_that_stay_would(found, distance):
    hashes, colours, copy_of, pairs, num_evaluation, preference = found
    total = len(hashes)
    order = None if preference is None else np.array(preference)
    duplicates = Duplicates(num_evaluation, total - num_evaluation, order)
    duplicates.add_equal(np.arange(total), np.array(copy_of))
    for one, other in pairs:
        duplicates.add_pairs(np.array([one]), np.array([other]))
    looking = np.flatnonzero(duplicates.is_first)
    looks = LookAlikes(looking, np.array(hashes, np.uint64)[looking], distance)
    thumbnails = np.array(colours, np.uint8)[looks.positions, None].repeat(12, axis=1)
    decision = duplicates.decide(looks, thumbnails)
    expected = naive(*found, distance)
    assert list(zip([REASONS[code] for code in decision.codes], decision.like.tolist(), strict=True)) == expected


def test_one_pixel_of_another_colour_is_another_picture():
    thumbnails = np.full((3, 768), 100, np.uint8)
    thumbnails[1, 500] += MOST_DIFFERENCE
    thumbnails[2, 500] += MOST_DIFFERENCE + 1
    looks = LookAlikes(np.arange(3), np.zeros(3, np.uint64), 4)
    assert Duplicates(0, 3).decide(looks, thumbnails).like.tolist() == [NOTHING, 0, NOTHING]


def test_where_nothing_is_alike_all_stay():
    assert Duplicates(2, 3).decide().codes.tolist() == [0, 0, 0]
    assert Duplicates(0, 0).decide().codes.tolist() == []


@given(st.lists(st.tuples(*[st.integers(0, 1)] * 4), max_size=30))
def test_classes_are_those_of_whole_digests(digests):
    found = classes(np.array(digests, np.uint64).reshape(-1, 4)).tolist()
    assert [[a == b for b in found] for a in found] == [[a == b for b in digests] for a in digests]
    prefixes = np.array([digest[0] for digest in digests], np.uint64)
    places = np.arange(len(digests))
    assert repeated(prefixes, places).tolist() == [n for n in places if (prefixes == prefixes[n]).sum() > 1]
