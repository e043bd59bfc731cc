"""The formula of balancing, and its random numbers."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych_shards.curate.balance import keep_probabilities, query_probabilities, uniforms
from diptych_shards.curate.matching import Matcher, Matches

PAIRS = st.lists(st.lists(st.integers(0, 9), unique=True, max_size=6), min_size=1, max_size=20)


def as_matches(queries_of):
    offsets = np.concatenate([[0], np.cumsum([len(queries) for queries in queries_of])])
    return Matches(np.array([query for queries in queries_of for query in queries], np.int32), offsets)


@given(PAIRS, st.integers(1, 30))
@settings(deadline=None)
def test_a_pair_stays_with_the_probability_that_any_of_its_queries_keeps_it(queries_of, pairs_per_query):
    counts = np.array([sum(query in queries for queries in queries_of) for query in range(10)])
    probabilities = query_probabilities(counts, pairs_per_query)
    wanted = []
    for queries in queries_of:
        lost = 1.0
        for query in queries:
            lost *= 1 - pairs_per_query / max(counts[query], pairs_per_query)
        wanted.append(1 - lost)
    assert keep_probabilities(as_matches(queries_of), probabilities).tolist() == wanted


def test_a_query_of_few_pairs_keeps_them_all_and_a_pair_without_queries_is_dropped():
    probabilities = query_probabilities(np.array([20_000, 20_001, 0]), 20_000)
    assert probabilities.tolist() == [1.0, 20_000 / 20_001, 1.0]
    assert keep_probabilities(as_matches([[0, 1], []]), probabilities).tolist() == [1.0, 0.0]


def test_one_number_of_a_pair_keeps_as_many_as_a_draw_for_each_of_its_queries():
    draw = np.random.default_rng(0)
    probabilities = np.array([0.02, 0.1, 0.3])
    queries_of = [[0, 1, 2]] * 200_000
    by_draws = (draw.random((200_000, 3)) < probabilities).any(1).mean()
    hashes = draw.integers(0, 2**64, 200_000, np.uint64)
    by_hash = (uniforms(hashes, 1) < keep_probabilities(as_matches(queries_of), probabilities)).mean()
    # Five standard deviations of a share of 0.38 among 200,000, of a difference.
    assert abs(by_draws - by_hash) < 5 * np.sqrt(2 * 0.38 * 0.62 / 200_000)


def test_what_queries_keep_is_what_the_formula_expects():
    captions = ["the dog"] * 6000 + ["the"] * 3000 + ["dog cat"] * 50
    matches = Matcher(["the", "dog", "cat"]).match(captions)
    counts = np.bincount(matches.ids, minlength=3)
    assert counts.tolist() == [9000, 6050, 50]
    chances = keep_probabilities(matches, query_probabilities(counts, 1000))
    hashes = np.random.default_rng(1).integers(0, 2**64, len(captions), np.uint64)
    stays = uniforms(hashes, 3) < chances
    expected, spread = chances.sum(), np.sqrt((chances * (1 - chances)).sum())
    assert abs(stays.sum() - expected) < 5 * spread
    assert stays[9000:].all()


def test_numbers_are_uniform_also_for_neighbouring_hashes():
    numbers = np.sort(uniforms(np.arange(100_000, dtype=np.uint64), 0))
    assert 0 <= numbers[0] and numbers[-1] < 1
    # Kolmogorov-Smirnov at one in a million.
    assert np.abs(numbers - np.arange(100_000) / 100_000).max() < 2.7 / np.sqrt(100_000)


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
@settings(deadline=None)
def test_each_seed_draws_differently(one, other):
    hashes = np.arange(20_000, dtype=np.uint64)
    first, second = uniforms(hashes, one), uniforms(hashes, other)
    if one == other:
        assert np.array_equal(first, second)
    else:
        assert abs(np.corrcoef(first, second)[0, 1]) < 0.05


def test_numbers_never_change():
    numbers = uniforms(np.array([0, 1, 2**64 - 1], np.uint64), 0)
    assert numbers.tolist() == [0.28176129772258496, 0.9160981669305095, 0.6172084904339515]
