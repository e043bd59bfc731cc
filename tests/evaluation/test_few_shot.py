from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from diptych.evaluation import few_shot, few_shot_shown
from diptych.evaluation.comparison import compare
from diptych.evaluation.data_sets import DataSet
from diptych.evaluation.embedding import Embedded
from diptych.evaluation.features import Features
from diptych.evaluation.linear_probe import fit_probe, linear_probe
from diptych.evaluation.pictures import Pictures
from diptych.evaluation.prompts import make_prompts
from diptych.evaluation.tables import comparison_table

CLASSES = ("ant", "bee", "cat", "dog")
CENTRES = np.random.default_rng(0).normal(size=(len(CLASSES), 8)).astype(np.float32)


class Known(Features):
    """Features that are the class's centre with noise; a text's embedding is near the centre of its class."""

    logit_scale = 1.0

    def __init__(self, noise_of_texts=0.0):
        super().__init__(None)
        self.noise_of_texts = noise_of_texts

    def pictures(self, pictures):
        random = np.random.default_rng(len(pictures))
        places = [CLASSES.index(label) for label in pictures.labels]
        noise = 1.2 * random.normal(size=(len(places), CENTRES.shape[1]))
        return Embedded((CENTRES[places] + noise).astype(np.float32), np.arange(len(places)))

    def embed_texts(self, texts):
        noise = np.random.default_rng(1).normal(size=CENTRES.shape)
        named = [next(place for place, name in enumerate(CLASSES) if name in text) for text in texts]
        return (CENTRES + self.noise_of_texts * noise)[named]


def labelled(counts):
    labels = tuple(name for name, count in zip(CLASSES, counts, strict=True) for _ in range(count))
    return Pictures(f"of {counts}", tuple(map(str, range(len(labels)))), lambda place: b"", labels)


def measured(train, noise_of_texts=0.0):
    data = DataSet(labelled([100] * 4), make_prompts(CLASSES, ["a {}"]), labelled(train))
    return few_shot.few_shot(Known(noise_of_texts), data)


def test_accuracy_rises_with_the_shots_and_zero_shot_equals_some_of_them():
    result = measured([40] * 4, noise_of_texts=0.7)

    assert result["shots"] == [1, 2, 4, 8, 16, 40]
    assert result["metrics"]["top1_1_shot"] < result["metrics"]["top1_16_shots"] < 1
    draws = result["top1_of_draws"]["top1_4_shots"]
    assert len(set(draws)) > 1
    assert result["metrics"]["top1_4_shots"] == pytest.approx(np.mean(draws))
    zero_shot, equal = result["metrics"]["top1_0_shots"], result["metrics"]["zero_shot_equals_shots"]
    assert result["metrics"]["top1_1_shot"] < zero_shot < result["metrics"]["top1_16_shots"]
    low, high = result["intervals"]["zero_shot_equals_shots"]
    assert 1 <= low < equal < high <= 40
    assert f"Zero-shot equals {equal:.2g} labelled" in few_shot_shown.readable("x", result)
    json.dumps(result, allow_nan=False)


@pytest.mark.parametrize("count, taken, said", [(16, {"16": 8}, "is that of 8"), (1, {"1": 0}, "is the variance")])
def test_a_penalty_that_no_picture_is_left_to_choose_does_not_depend_on_the_scale_of_the_features(count, taken, said):
    class Larger(Known):
        def pictures(self, pictures):
            embedded = super().pictures(pictures)
            return replace(embedded, embeddings=30 * embedded.embeddings)

    data = DataSet(labelled([100] * 4), make_prompts(CLASSES, ["a {}"]), labelled([count] * 4))
    result, larger = (few_shot.few_shot(features, data) for features in (Known(), Larger()))
    assert result["penalties_taken_from"] == taken
    assert any(said in each for each in few_shot_shown.remarks(result))
    shots = few_shot.metric_of(count)
    assert larger["metrics"][shots] == pytest.approx(result["metrics"][shots], abs=0.01)
    assert larger["inverse_penalties"][str(count)] < result["inverse_penalties"][str(count)] / 100


def test_a_bound_at_the_end_of_what_was_measured_is_open():
    result = measured([40] * 4, noise_of_texts=0.7)
    for interval, said in (([1, 40], "1 or fewer to 40 or more"), ([2, 8.4], "interval 2 to 8.4)")):
        result["intervals"]["zero_shot_equals_shots"] = interval
        assert said in few_shot_shown.remarks(result)[0]


def test_two_models_are_compared_on_the_answers_of_their_probes():
    def of_model(seed):
        class Model(Known):
            def pictures(self, pictures):
                embedded = super().pictures(pictures)
                noise = np.random.default_rng(seed).normal(size=embedded.embeddings.shape)
                return replace(embedded, embeddings=(embedded.embeddings + seed * noise).astype(np.float32))

        data = DataSet(labelled([100] * 4), make_prompts(CLASSES, ["a {}"]), labelled([20] * 4))
        features = Model()
        evaluators = {"few_shot": few_shot.few_shot, "linear_probe": linear_probe}
        return json.loads(json.dumps({name: {"x": measure(features, data)} for name, measure in evaluators.items()}))

    first, second = of_model(0), of_model(2)
    compared = {(each.evaluator, each.metric): each for each in compare(first, second)}
    shots = {few_shot.metric_of(each) for each in (0, *few_shot.SHOTS, 20)}
    probe = {("linear_probe", metric) for metric in ("top1", "mean_per_class_recall")}
    assert compared.keys() == {("few_shot", each) for each in shots} | probe
    for (_, metric), each in compared.items():
        assert each.difference.value == pytest.approx(each.second - each.first) and each.difference.value < 0
        assert each.difference.interval[0] < each.difference.value < each.difference.interval[1]
        of_one_answer = dict.fromkeys(("top1", "top1_0_shots", "top1_all"), "McNemar, exact")
        of_one_answer["mean_per_class_recall"] = "random exchanges"
        assert each.difference.test == of_one_answer.get(metric, "paired bootstrap")

    shown = comparison_table(first, second)
    assert 0 < shown.index("linear probe:") < shown.index("few-shot:")

    second["linear_probe"]["x"]["answers"]["of"] = "others"
    assert {each.evaluator for each in compare(first, second)} == {"few_shot"}


def test_the_chart_has_an_interval_around_each_point_and_names_the_shots():
    chart = few_shot_shown.chart(measured([20] * 4))
    points = [tuple(map(float, point.split(","))) for point in chart.lines[0].points.split()]
    assert len(points) == len(chart.whiskers) == 6
    for (x, y), (at, low, high) in zip(points, chart.whiskers, strict=True):
        assert x == at and high <= y <= low  # heights are measured from the top
    assert [label for _, label in chart.x_ticks] == ["1", "2", "4", "8", "16", "20"]
    near = few_shot_shown.chart(measured([18] * 4))
    assert [label for _, label in near.x_ticks] == ["1", "2", "4", "8", "16"]


def test_zero_shot_outside_of_the_curve_has_no_number_and_is_said_in_words():
    better = measured([20] * 4)
    assert better["metrics"]["zero_shot_equals_shots"] is None
    assert better["zero_shot_equals"] == "more than 20"
    worse = measured([20] * 4, noise_of_texts=50)
    assert worse["zero_shot_equals"] == "fewer than 1"


def test_numbers_of_shots_that_a_class_does_not_have_are_left_out_and_said():
    result = measured([3, 30, 30, 30])
    assert result["shots"] == [1, 2, 93 / 4]
    assert list(result["shots_left_out"]) == ["4", "8", "16"]
    assert "No probe of 4 pictures of each class: ant has only 3." in few_shot_shown.readable("x", result)


def test_too_much_work_leaves_numbers_of_shots_and_pictures_out_and_is_said(monkeypatch):
    monkeypatch.setattr(few_shot, "MOST_WORK", 4 * 4 * 4 * 8)
    monkeypatch.setattr(
        few_shot,
        "probe_of_tower",
        lambda features, train: fit_probe(features.before_projection, train, 4 * 4 * 6 * 8, facts={"of": "features"}),
    )
    result = measured([20] * 4)
    assert result["shots"] == [1, 2, 4, 6]
    said = few_shot_shown.readable("x", result)
    assert "(all)" not in said
    assert "The last probe is fitted to 24 of 80 pictures, to limit the work." in said
    assert "No probe of 8 pictures of each class: too much work for 4 classes." in said


def test_each_probe_is_fitted_to_as_many_pictures_of_each_class_as_it_says(monkeypatch):
    fit, fitted_to, held_out = few_shot.fit, [], []

    def recorded(rows, labels, penalty):
        fitted_to.append(Counter(labels.tolist()))
        return fit(rows, labels, penalty)

    def chosen(rows, labels, held_rows, held_labels):
        assert not {row.tobytes() for row in rows} & {row.tobytes() for row in held_rows}
        held_out.append(Counter(held_labels.tolist()))
        return 1.0, 0.5

    monkeypatch.setattr(few_shot, "fit", recorded)
    monkeypatch.setattr(few_shot, "best_inverse_penalty", chosen)
    measured([18] * 4)

    shots = [count for number in few_shot.SHOTS for count in [number] * few_shot.DRAWS]
    assert fitted_to == [dict.fromkeys(CLASSES, number) for number in shots]
    assert held_out == [dict.fromkeys(CLASSES, number) for number in (1, 2, 4, 4, 2)]


@pytest.mark.parametrize(
    "accuracy, shots",
    [
        (0.1, 0),
        (0.2, 1),
        (0.3, math.sqrt(2)),
        (0.4, 2),
        (0.5, 2 * 8 ** (1 / 4)),  # a fourth of the way from 2 to 16, in logarithms
        (0.8, 16),
        (0.81, math.inf),
    ],
)
def test_shots_are_interpolated_between_logarithms(accuracy, shots):
    points = [(1, 0.2), (2, 0.4), (16, 0.8), (50, 0.7)]
    assert few_shot.shots_that_match(accuracy, points) == pytest.approx(shots)
