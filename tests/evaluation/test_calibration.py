"""Probabilities that agree with labels, and labels judged by themselves: known values, and false alarms as stated."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from diptych.errors import UserError
from diptych.evaluation import calibration
from diptych.evaluation.calibration import calibrate
from diptych.evaluation.captions_that_name import Captions
from diptych.evaluation.intervals import wilson
from diptych.evaluation.null_distribution import (
    IndependentLabels,
    NullDistribution,
    ProbabilityCurve,
    fit_logistic,
    fit_probability_curve,
)
from diptych.evaluation.picture_sources import open_labelled
from diptych.evaluation.pictures import Pictures, subset
from diptych.evaluation.prompts import build_classifier, make_prompts
from diptych.evaluation.reliability import expected_calibration_error, reliability_diagram
from diptych.evaluation.similarity import similarities, softmax, unit_norm
from diptych.evaluation.temperature_scaling import fit_logit_scale, measure_agreement
from tests.evaluation.colours import COLOURS, ColourEncoder, write_tree


def drawn_from(cosines, logit_scale, seed):
    """Labels drawn from the softmax, with which it therefore agrees."""
    shares = softmax(logit_scale * cosines.astype(np.float64))
    return (np.random.default_rng(seed).random((len(shares), 1)) > shares.cumsum(axis=1)).sum(axis=1)


def test_calibration_error_is_the_mean_difference_of_confidence_and_accuracy_within_bins():
    confidences = np.array([0.95, 0.95, 0.55, 0.55])
    bins = reliability_diagram(confidences, np.array([True, False, True, True]), num_bins=10)

    assert [(each.pictures, each.accuracy) for each in bins] == [(2, 1.0), (2, 0.5)]
    assert expected_calibration_error(bins) == pytest.approx(0.5 * (1 - 0.55) + 0.5 * (0.95 - 0.5))


def test_a_confidence_on_the_edge_of_two_bins_belongs_to_the_lower_one():
    bins = reliability_diagram(np.array([0.0, 0.2, 0.4, 1.0]), np.ones(4, dtype=bool), num_bins=5)

    assert [(each.low, each.high, each.pictures) for each in bins] == [(0.0, 0.2, 2), (0.2, 0.4, 1), (0.8, 1.0, 1)]


def test_the_fitted_factor_is_the_one_that_the_labels_were_drawn_with():
    cosines = np.random.default_rng(0).uniform(-1, 1, (20_000, 10)).astype(np.float32)
    labels = drawn_from(cosines, 12.0, seed=1)

    fitted = fit_logit_scale(cosines, labels)
    before, after = (measure_agreement(cosines, labels, scale) for scale in (3.0, fitted))

    assert fitted == pytest.approx(12.0, rel=0.03)  # 20,000 pictures leave about 1 %
    assert before.ece > 0.2
    assert after.ece < 0.01
    shares = softmax(fitted * cosines.astype(np.float64))
    assert after.nll == pytest.approx(log_loss(labels, shares), rel=1e-12)
    assert all(measure_agreement(cosines, labels, factor * fitted).nll > after.nll for factor in (0.99, 1.01))


def test_a_model_that_is_always_right_gets_a_finite_factor():
    cosines = np.eye(4, dtype=np.float32)
    agreement = measure_agreement(cosines, np.arange(4), fit_logit_scale(cosines, np.arange(4)))

    assert np.isfinite(agreement.logit_scale)
    assert agreement.nll < 1e-6


def test_a_model_that_is_sure_and_wrong_has_a_finite_likelihood():
    assert np.isfinite(measure_agreement(np.eye(2, dtype=np.float32), np.array([1, 0]), 1000.0).nll)


def test_the_logistic_curve_is_that_of_scikit_learn_with_platts_targets():
    random = np.random.default_rng(0)
    positive, negative = random.normal(3, 1, 50), random.normal(0, 1, 400)
    targets = np.repeat([51 / 52, 1 / 402], [50, 400])
    weights = np.repeat([0.5 / 50, 0.5 / 400], [50, 400])
    # Each number is there as both classes, weighted by its target.
    twice = np.tile(np.concatenate([positive, negative]), 2)[:, None]
    model = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000)
    model.fit(twice, np.repeat([1, 0], 450), np.concatenate([weights * targets, weights * (1 - targets)]) * 450)

    assert fit_logistic(positive, negative) == pytest.approx((model.coef_[0, 0], model.intercept_[0]), rel=1e-4)


def test_the_logistic_curve_of_separate_sets_is_finite():
    slope, offset = fit_logistic(np.full(10, 5.0), np.zeros(10))

    assert 0 < slope < 10
    assert np.isfinite(offset)


def test_the_probability_of_a_label_is_half_where_rates_of_both_kinds_are_alike_and_grows_as_the_rate_falls():
    uniform = np.arange(1, 1000) / 1000
    assert fit_probability_curve(uniform, 999)(np.array([0.001, 0.5, 1.0])) == pytest.approx(0.5, abs=0.01)

    rare = fit_probability_curve(uniform**4, 999)(np.array([0.001, 0.1, 0.9]))
    assert rare[0] > 0.9 > 0.6 > rare[1] > 0.3 > rare[2]


@pytest.mark.parametrize(
    ("name", "caption", "is_named"),
    [
        ("a fox", "A red Fox, asleep", True),
        ("key", "a monkey", False),
        ("fox on a red background", "a red background, and on it the fox", True),
        ("red fox", "a fox", False),
        ("of the", "of course", False),
        ("the who", "who is on stage", True),
        ("狐狸", "雪中的红狐狸", True),
        ("!", "!", False),
    ],
)
def test_a_caption_names_a_label_if_it_has_all_its_words(name, caption, is_named):
    assert Captions(["something else", caption]).that_name([name]).tolist() == [False, is_named]


def test_a_caption_may_name_a_label_by_any_of_its_names():
    assert Captions(["goldfish", "Carassius auratus", "carp"]).that_name(["goldfish", "carassius auratus"]).sum() == 2


def cloud(number, seed, shift=0.0):
    """Random pictures, each of one of 20 kinds, and captions that name it."""
    random = np.random.default_rng((seed, number))
    kinds = random.integers(20, size=number)
    noise = random.normal(size=(number, 16))
    return unit_norm(np.eye(20, 16)[kinds] * 3 + noise + shift), [f"a picture of kind{kind}" for kind in kinds], kinds


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_as_many_pictures_get_a_label_that_does_not_hold_as_is_stated(seed):
    pictures, captions, _ = cloud(4000, seed)
    others, _, kinds = cloud(3999, seed)
    names, classifier = [[f"kind{kind}"] for kind in range(20)], unit_norm(np.eye(20, 16) + 0.01)
    labels = IndependentLabels(NullDistribution(pictures, tuple(captions)), names, classifier)
    judged = labels.judge(others)
    wrong = kinds[:, None] != np.arange(20)

    false_alarms = ((judged.rates_of_list <= 0.01) & wrong).any(axis=1).mean()
    # Both halves vary: three standard deviations of a share of 4,000, times the square root of 2.
    assert false_alarms == pytest.approx(0.01, abs=3 * 2**0.5 * (0.01 * 0.99 / 4000) ** 0.5)
    assert (judged.rates[wrong] <= 0.05).mean() == pytest.approx(0.05, abs=0.01)
    assert judged.rates.min() == pytest.approx(1 / 3801, rel=0.1)


def test_a_label_that_is_near_to_every_picture_does_not_win():
    pictures, captions, _ = cloud(500, 0, shift=1.0)
    near_to_all = unit_norm(np.ones((1, 16)))
    kind = unit_norm(np.eye(1, 16))
    names, classifier = [["everything"], ["kind0"]], np.concatenate([near_to_all, kind])
    of_kind = pictures[[caption == "a picture of kind0" for caption in captions]]

    assert (of_kind @ classifier.T).argmax(axis=1).mean() < 0.5
    judged = IndependentLabels(NullDistribution(pictures, tuple(captions)), names, classifier).judge(of_kind)
    assert judged.scores.argmax(axis=1).mean() > 0.9


def test_where_all_pictures_look_alike_no_label_holds():
    pictures = unit_norm(np.ones((50, 4)))
    null = NullDistribution(pictures, tuple(["cat", "dog"] * 25))
    judged = IndependentLabels(null, [["cat"], ["dog"]], pictures[:2]).judge(pictures[:1])

    assert judged.rates.tolist() == [[1, 1]]
    assert judged.rates_of_list.tolist() == [[1, 1]]


def coloured(tmp_path):
    return open_labelled(str(write_tree(tmp_path / "data", list(COLOURS), copies=20)))


def test_one_half_is_fitted_and_the_other_measured(tmp_path):
    data = coloured(tmp_path)
    # Some wrong labels: the model is not always right, so that the best temperature is finite.
    random = np.random.default_rng(0)
    labels = tuple(random.choice(list(COLOURS)) if random.random() < 0.3 else label for label in data.labels)
    prompts, encoder = make_prompts(list(COLOURS)), ColourEncoder()
    found = calibrate(encoder, [replace(data, labels=labels)], prompts)
    temperature = found.document["temperature"]

    # The null distribution is the fitted half, with the names of its classes as captions.
    fitted = np.array([list(COLOURS).index(caption) for caption in found.null.captions])
    classifier = build_classifier(encoder, prompts.classes, prompts.templates)
    assert temperature["logit_scale"] == fit_logit_scale(similarities(found.null.pictures, classifier), fitted)
    assert temperature["logit_scale"] < 100
    assert len(fitted) == temperature["pictures_measured"] == 60


def test_many_captions_displace_no_label(tmp_path, monkeypatch):
    monkeypatch.setattr(calibration, "MOST_PICTURES", 100)
    data = coloured(tmp_path)
    many = tuple(f"{number}.png" for number in range(20_000))
    captions = tuple((data.labels[number % len(data)],) for number in range(len(many)))
    captioned = Pictures("pairs", many, lambda place: data.read(place % len(data)), captions=captions)
    temperature = calibrate(ColourEncoder(), [data, captioned], make_prompts(list(COLOURS))).document["temperature"]
    assert temperature["pictures_fitted"] == temperature["pictures_measured"] == 50
    with pytest.raises(UserError, match="^30 labelled pictures are too few to calibrate with; expected 40 or more"):
        calibrate(ColourEncoder(), [subset(data, np.arange(0, 120, 4)), captioned], make_prompts(list(COLOURS)))


def test_labels_of_a_perfect_model_are_found_and_none_of_these_is_told_apart(tmp_path):
    found = calibrate(ColourEncoder(), [coloured(tmp_path)], make_prompts(list(COLOURS)))
    independent = found.document["independent"]

    assert independent["labels_found"] == 1
    assert independent["none_of_these_roc_auc"] == 1
    low, high = independent["false_alarm_interval"]
    assert low <= independent["false_alarm_rate"] < 0.2
    assert high > wilson(independent["false_alarm_rate"] * 60, 60)[1]  # the other half varies too


def test_a_label_that_nearly_all_captions_name_is_refused():
    pictures, captions, _ = cloud(50, 0)
    with pytest.raises(UserError, match="50 of 50 captions .* name 'picture'"):
        IndependentLabels(NullDistribution(pictures, tuple(captions)), [["picture"]], pictures[:1])


def test_the_curve_takes_rates_of_any_size_without_overflow():
    assert ProbabilityCurve(400.0, 3.0)(np.array([1e-9, 1.0])) == pytest.approx([1.0, 0.953], abs=0.001)
