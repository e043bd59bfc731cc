from __future__ import annotations

import math

import numpy as np
import pytest

from diptych.evaluation.average_precision import average_precision, measured_by, ranking, roc_auc
from diptych.evaluation.intervals import bootstrap, grouped_share, per_class_interval, wilson
from diptych.evaluation.paired import mcnemar, paired_bootstrap, paired_per_class


def test_wilson_gives_the_published_numbers():
    # Newcombe (1998), table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29.
    expected = {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }
    for (hits, total), interval in expected.items():
        assert wilson(hits, total) == pytest.approx(interval, abs=6e-5)
    assert wilson(20, 20)[1] == 1 and wilson(20, 20)[0] < 0.9
    assert wilson(0, 0) == (0, 1)


def covered(draw, interval, truth, times=400):
    hits = 0
    for seed in range(times):
        low, high = interval(draw(np.random.default_rng(seed)))
        hits += low <= truth <= high
    return hits / times


def test_intervals_cover_the_truth_as_often_as_they_claim():
    # 400 draws have a standard deviation of 1.1 %; the bounds leave four of them, and what small samples cost.
    share = covered(lambda random: random.binomial(40, 0.9), lambda hits: wilson(hits, 40), 0.9)
    assert share > 0.905

    of_class, totals = np.array([0.95, 0.4, 0.8, 0.9]), np.array([3, 50, 8, 20])
    recall = covered(
        lambda random: random.binomial(totals, of_class), lambda hits: per_class_interval(hits, totals), of_class.mean()
    )
    assert recall > 0.905


def test_captions_of_one_picture_are_not_taken_for_independent():
    right = np.random.default_rng(0).random(300) < 0.4
    low, high = grouped_share(right, np.arange(300)).interval
    # Five captions of a picture that are all found or all missed say no more than one does.
    share, (low_of_five, high_of_five) = grouped_share(np.repeat(right, 5), np.repeat(np.arange(300), 5))
    assert share == pytest.approx(right.mean())
    assert high_of_five - low_of_five == pytest.approx(high - low, rel=0.1)
    independent = wilson(5 * right.sum(), 5 * 300)
    assert high_of_five - low_of_five > 1.8 * (independent[1] - independent[0])


def test_a_perfect_score_is_not_taken_for_certainty():
    assert grouped_share(np.ones(60, bool), np.repeat(np.arange(30), 2)).interval[0] < 0.95
    low, high = per_class_interval(np.array([2, 2]), np.array([2, 2]))
    assert low < 0.6 and high == 1


def test_a_perfect_ranking_is_not_taken_for_certainty():
    ranked = [ranking(np.arange(20, dtype=np.float32), np.arange(20) >= 15)]
    for measure in (average_precision, roc_auc):
        value, (low, high) = measured_by(measure, ranked)
        assert value == high == 1 and low == pytest.approx(wilson(20, 20)[0])


def test_equal_classes_have_the_interval_of_the_whole():
    hits = np.array([7, 9, 4])
    assert per_class_interval(hits, np.full(3, 10)) == pytest.approx(wilson(20, 30))


def test_the_bootstrap_agrees_with_the_normal_approximation_and_repeats_itself():
    values = np.random.default_rng(3).random(2_000)

    def mean(counts):
        return counts @ values / counts.sum(axis=1)

    half = 1.96 * values.std() / math.sqrt(2_000)
    # 1,000 resamples place a percentile with a standard deviation of about 5 % of the half width; four of them.
    value, interval = bootstrap(mean, 2_000)
    assert value == pytest.approx(values.mean())
    assert interval == pytest.approx((values.mean() - half, values.mean() + half), abs=0.2 * half)
    assert bootstrap(mean, 2_000) == bootstrap(mean, 2_000)


def test_mcnemar_is_the_exact_binomial_test_on_the_pictures_where_the_models_differ():
    stats = pytest.importorskip("scipy.stats")
    random = np.random.default_rng(1)
    for total in (10, 80, 4_000):
        first, second = random.random(total) < 0.6, random.random(total) < 0.64
        difference = mcnemar(first, second)
        gained, lost = int((~first & second).sum()), int((first & ~second).sum())
        assert difference.p_value == pytest.approx(stats.binomtest(gained, gained + lost).pvalue)
        assert difference.value == pytest.approx(second.mean() - first.mean())
        assert difference.interval[0] < difference.value < difference.interval[1]


def test_models_with_the_same_answers_differ_by_nothing_and_not_for_sure():
    right = np.arange(50) % 2 == 0
    difference = mcnemar(right, right)
    assert (difference.value, difference.p_value) == (0, 1)
    assert difference.interval[0] < 0 < difference.interval[1]


def test_a_mean_of_equal_classes_is_tested_as_mcnemar_does():
    random, labels = np.random.default_rng(1), np.repeat(np.arange(5), 12)
    first, second = random.random(60) < 0.5, random.random(60) < 0.7
    expected, found = mcnemar(first, second), paired_per_class(first, second, labels)
    assert (found.value, *found.interval) == pytest.approx((expected.value, *expected.interval))
    # Of 5,000 exchanges, a probability has a standard deviation of at most 0.007, of which this is four.
    assert found.p_value == pytest.approx(expected.p_value, abs=0.028)


@pytest.mark.parametrize("of_class", [1, 2, 20])
def test_a_mean_of_small_classes_is_not_taken_for_certainty(of_class):
    labels = np.repeat(np.arange(60 // of_class), of_class)
    first = labels % 2 == 0
    itself, better = (paired_per_class(first, second, labels) for second in (first, first | (np.arange(60) < 2)))
    assert itself.interval[0] < 0 < itself.interval[1] and itself.p_value == 1
    assert better.interval[0] < better.value < better.interval[1] and better.p_value > 0.4


def test_two_statistics_that_never_differ_are_not_equal_for_sure():
    difference = paired_bootstrap(*[lambda counts: np.ones(len(counts))] * 2, 50)
    assert difference.interval == mcnemar(np.ones(50, bool), np.ones(50, bool)).interval and difference.p_value == 1


def test_a_paired_test_sees_what_two_intervals_do_not():
    random = np.random.default_rng(0)
    hardness = random.random(1_000)
    first, second = hardness < 0.6, hardness < 0.62  # the second is right wherever the first is, and on 2 % more
    assert wilson(first.sum(), 1_000)[1] > wilson(second.sum(), 1_000)[0]
    assert mcnemar(first, second).p_value < 0.001

    def share(right):
        return lambda counts: counts @ right / counts.sum(axis=1)

    difference = paired_bootstrap(share(first), share(second), 1_000)
    assert difference.value == pytest.approx(second.mean() - first.mean())
    assert difference.interval[0] > 0
    assert difference.p_value < 0.01
    assert paired_bootstrap(share(first), share(first), 1_000).p_value == 1
