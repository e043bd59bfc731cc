from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from diptych.evaluation.logistic_regression import GRID, best_inverse_penalty, fit, search


def overlapping_classes(pictures, seed, classes=4, width=12):
    """Features with one large and many small directions, in classes that overlap, and their labels."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(classes, width))
    labels = random.integers(classes, size=pictures)
    scales = np.geomspace(0.1, 3, width)
    return (centres[labels] + 1.5 * random.normal(size=(pictures, width))) * scales + 5, labels


def test_the_grid_is_the_papers_96_steps_and_has_the_penalty_of_openais_example():
    assert len(GRID) == 97
    assert (GRID[0], GRID[-1]) == pytest.approx((1e-6, 1e6))
    np.testing.assert_allclose(np.diff(np.log10(GRID)), 12 / 96)
    assert np.isclose(GRID, 0.316, rtol=1e-2).any()


def test_the_search_begins_two_decades_apart_and_halves_to_an_eighth_of_a_decade():
    tried = []

    def score(place):
        tried.append(place)
        return -abs(place - 37), 0.0

    assert search(score) == (37, (0, 0.0))
    np.testing.assert_allclose([GRID[place] for place in tried[:7]], [1e-6, 1e-4, 1e-2, 1, 1e2, 1e4, 1e6])
    assert tried[7:] == [24, 40, 36, 44, 34, 38, 35, 37]


@pytest.mark.parametrize("peak", range(0, 97, 4))
def test_the_search_finds_any_single_peak(peak):
    assert search(lambda place: (-abs(place - peak), 0.0))[0] == peak


def test_the_search_agrees_with_all_97_fits():
    train, held = overlapping_classes(120, 1), overlapping_classes(400, 2)
    scores = [fit(*train, penalty).score(*held) for penalty in GRID]
    best = max(range(len(GRID)), key=lambda place: scores[place])

    found, accuracy = best_inverse_penalty(*train, *held)

    assert abs(GRID.index(found) - best) <= 1
    assert 0 < best < len(GRID) - 1
    assert accuracy == pytest.approx(scores[best][0], abs=1 / 400)


@pytest.mark.parametrize("classes", [2, 4])
def test_c_is_scikit_learns_for_the_features_as_they_are(classes):
    features, labels = overlapping_classes(150, 3, classes)
    others, true = overlapping_classes(80, 4, classes)
    theirs = LogisticRegression(C=GRID[30], max_iter=10_000, tol=1e-8).fit(features, labels)

    ours = fit(features, labels, GRID[30])

    np.testing.assert_allclose(ours.model.coef_ / ours.scale, theirs.coef_, rtol=0.02, atol=1e-3)
    accuracy, log_likelihood = ours.score(others, true)
    assert accuracy == theirs.score(others, true)
    logs = theirs.predict_log_proba(others)[np.arange(len(true)), true]
    assert log_likelihood == pytest.approx(logs.mean(), rel=1e-3)  # scikit-learn stops at a gradient of 1e-4
    assert np.array_equal(ours.predict(others), theirs.predict(others))
