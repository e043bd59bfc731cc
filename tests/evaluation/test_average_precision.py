from __future__ import annotations

import warnings

import numpy as np
import pytest

from diptych.evaluation.average_precision import (
    average_precision,
    eleven_point_precision,
    measured_by,
    ranking,
    roc_auc,
)

ONE = np.ones((1, 300), dtype=np.int64)


def case(seed=0, decimals=None):
    random = np.random.default_rng(seed)
    has_label = random.random(300) < 0.2
    scores = (random.normal(size=300) + has_label).astype(np.float32)
    return (scores if decimals is None else scores.round(decimals)), has_label


def clip_benchmark_average_precision(scores, targets):
    """The mean over the pictures with the label of the precision down to them, as CLIP_benchmark computes it."""
    order = np.argsort(-scores)
    true = np.cumsum(targets[order])
    precision = true / np.arange(1, len(scores) + 1)
    return precision[targets[order]].sum() / max(targets.sum(), 1)


def voc2007_average_precision(scores, targets):
    """The definition in the development kit of VOC 2007."""
    order = np.argsort(-scores)
    true = np.cumsum(targets[order])
    recall, precision = true / targets.sum(), true / np.arange(1, len(scores) + 1)
    reached = [precision[recall >= level - 1e-12] for level in np.arange(0, 1.1, 0.1)]
    return np.mean([each.max() if len(each) else 0.0 for each in reached])


@pytest.mark.parametrize("decimals", [None, 1, 0])
def test_average_precision_and_area_equal_scikit_learn(decimals):
    metrics = pytest.importorskip("sklearn.metrics")
    scores, has_label = case(decimals=decimals)
    ranked = ranking(scores, has_label)
    assert average_precision(ranked, ONE)[0] == pytest.approx(metrics.average_precision_score(has_label, scores))
    assert roc_auc(ranked, ONE)[0] == pytest.approx(metrics.roc_auc_score(has_label, scores))


def test_average_precision_equals_clip_benchmark_and_the_eleven_points_those_of_voc():
    for seed in range(5):
        scores, has_label = case(seed)
        ranked = ranking(scores, has_label)
        expected = clip_benchmark_average_precision(scores, has_label)
        assert average_precision(ranked, ONE)[0] == pytest.approx(expected, abs=1e-12)
        assert eleven_point_precision(ranked, ONE)[0] == pytest.approx(voc2007_average_precision(scores, has_label))


@pytest.mark.parametrize("decimals", [None, 0])
def test_a_resample_gives_the_value_of_its_pictures_written_out(decimals):
    scores, has_label = case(decimals=decimals)
    drawn = np.random.default_rng(9).integers(300, size=300)
    counts = np.bincount(drawn, minlength=300)[None]
    written_out = ranking(scores[drawn], has_label[drawn])
    for measure in (average_precision, eleven_point_precision, roc_auc):
        expected = measure(written_out, ONE)[0]
        assert measure(ranking(scores, has_label), np.concatenate([ONE, counts]))[1] == pytest.approx(expected)


def test_a_model_with_constant_output_reaches_chance_and_no_more():
    _, has_label = case()
    ranked = ranking(np.full(300, 0.5, np.float32), has_label)
    assert average_precision(ranked, ONE)[0] == pytest.approx(has_label.mean())
    assert eleven_point_precision(ranked, ONE)[0] == pytest.approx(has_label.mean())
    assert roc_auc(ranked, ONE)[0] == 0.5


def test_a_label_that_no_picture_has_gives_no_number_and_no_warning():
    ranked = ranking(np.arange(300, dtype=np.float32), np.zeros(300, bool))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for measure in (average_precision, eleven_point_precision, roc_auc):
            assert np.isnan(measure(ranked, ONE)[0])


def test_scores_that_are_not_finite_come_last():
    has_label = np.arange(4) == 0
    ranked = ranking(np.array([np.nan, 0.1, 0.2, 0.3], np.float32), has_label)
    assert average_precision(ranked, np.ones((1, 4)))[0] == 0.25


def test_the_interval_surrounds_the_value_also_over_many_rare_labels():
    # A resample finds a picture that it draws twice twice, so that its average precision is too high on average.
    random = np.random.default_rng(4)
    rankings = []
    for _ in range(400):
        has_label = random.permutation(100) < 2
        rankings.append(ranking((random.normal(size=100) + has_label).astype(np.float32), has_label))
    measured = measured_by(average_precision, rankings)
    assert measured.interval[0] < measured.value < measured.interval[1]
    assert measured_by(average_precision, [ranking(np.zeros(9), np.zeros(9, bool))]) is None
