from __future__ import annotations

import json

import numpy as np
import pytest

from diptych.evaluation.data_sets import DataSet, data_set
from diptych.evaluation.features import Features
from diptych.evaluation.picture_sources import open_labelled
from diptych.evaluation.prompts import make_prompts
from diptych.evaluation.similarity import similarities, unit_norm
from diptych.evaluation.zero_shot import accuracy, judge, zero_shot
from tests.evaluation.colours import COLOURS, ColourEncoder, picture, write_tree


def random_case(num_pictures=200, num_classes=17, dim=8):
    random = np.random.default_rng(0)
    images = unit_norm(random.normal(size=(num_pictures, dim)))
    classifier = unit_norm(random.normal(size=(num_classes, dim)))
    return images, classifier, random.integers(num_classes - 2, size=num_pictures)


def test_accuracy_equals_the_naive_formula():
    images, classifier, labels = random_case()
    logits = images.astype(np.float64) @ classifier.astype(np.float64).T
    order = np.argsort(-logits, axis=1)
    recalls = [np.mean(order[labels == each, 0] == each) for each in np.unique(labels)]

    judged = judge(images, classifier, labels, logit_scale=30.0)
    numbers = accuracy(judged, labels, len(classifier))

    assert numbers["top1"].value == np.mean(order[:, 0] == labels)
    assert numbers["top5"].value == np.mean([label in row[:5] for row, label in zip(order, labels, strict=True)])
    assert numbers["mean_per_class_recall"].value == pytest.approx(np.mean(recalls), abs=1e-12)
    np.testing.assert_array_equal(judged.guesses, order[:, :3])
    np.testing.assert_array_equal(judged.predicted, order[:, 0])
    softmax = np.exp(30 * logits) / np.exp(30 * logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(judged.probabilities, np.take_along_axis(softmax, order[:, :3], 1), rtol=1e-4)


def test_blocks_do_not_change_the_result(monkeypatch):
    images, classifier, labels = random_case()
    whole = judge(images, classifier, labels, 30.0)
    monkeypatch.setattr("diptych.evaluation.similarity.MOST_NUMBERS", 3 * len(classifier))
    parts = judge(images, classifier, labels, 30.0)
    for one, other in zip(vars(whole).values(), vars(parts).values(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)


@pytest.mark.parametrize("num_classes", [2, 5, 7, 33, 416])
def test_a_model_with_constant_output_is_never_right(num_classes):
    images = unit_norm(np.tile(np.linspace(-1, 2, 37), (50, 1)))
    classifier = unit_norm(np.tile(np.linspace(3, -1, 37), (num_classes, 1)))
    labels = np.arange(50) % num_classes
    judged = judge(images, classifier, labels, 100.0)
    assert not (judged.above == 0).any()
    assert not (judged.predicted == labels).any()
    if num_classes > 5:
        assert accuracy(judged, labels, num_classes)["top5"].value == 0


def test_features_that_are_not_finite_are_wrong_and_not_right():
    judged = judge(np.full((4, 3), np.nan, np.float32), np.eye(6, 3, dtype=np.float32), np.arange(4), 10.0)
    assert (judged.above == 5).all()


@pytest.mark.parametrize(("dim", "num_texts", "num_images"), [(16, 7, 1), (37, 5, 2), (37, 5, 50), (513, 419, 3)])
def test_equal_embeddings_get_equal_similarities_at_any_place(dim, num_texts, num_images):
    random = np.random.default_rng(1)
    image = unit_norm(random.normal(size=(num_images, dim)))
    text = unit_norm(np.tile(random.normal(size=dim), (num_texts, 1)))
    assert (np.ptp(similarities(image, text), axis=1) == 0).all()


def test_top5_is_null_below_six_classes():
    images, classifier, labels = random_case(num_classes=5)
    assert accuracy(judge(images, classifier, labels, 1.0), labels, 5)["top5"] is None


def test_real_pictures_are_named_by_their_colour_and_the_rest_is_reported(tmp_path):
    names = [f"{colour} card" for colour in COLOURS]
    write_tree(tmp_path, names, copies=3)
    (tmp_path / "red card" / "blue one.png").write_bytes(picture(COLOURS["blue"]))
    (tmp_path / "red card" / "broken.png").write_bytes(picture(COLOURS["red"])[:40])
    prompts = make_prompts(names, ["a {}", "{} on a table"])

    result = zero_shot(Features(ColourEncoder()), DataSet(open_labelled(str(tmp_path)), prompts))

    assert result["pictures"] == 19
    assert list(result["rejected"]) == ["red card/broken.png"]
    assert result["metrics"]["top1"] == pytest.approx(18 / 19)
    assert result["metrics"]["mean_per_class_recall"] == pytest.approx((3 / 4 + 5) / 6)
    assert result["chance"]["top1"] == pytest.approx(1 / 6)
    assert result["confusions"] == [[names.index("red card"), names.index("blue card"), 1]]
    assert result["per_class"][0] == [0, 4, 3]
    assert [each["name"] for each in result["wrong"]] == ["red card/blue one.png"]
    assert len(result["right"]) == 12 and len(result["sample"]) == 6
    certainties = [each["guesses"][0][1] for each in result["right"]]
    assert certainties[:6] == sorted(certainties[:6]) and certainties[6:] == sorted(certainties[6:])
    assert len({each["label"] for each in result["right"][:6]}) == 6  # one of each class first
    assert result["wrong"][0]["picture"].startswith("data:image/webp;base64,")
    json.dumps(result, allow_nan=False)


def test_a_label_that_is_not_a_class_is_an_error_that_names_the_nearest(tmp_path):
    write_tree(tmp_path, ["red card", "blue crad"])
    with pytest.raises(ValueError, match=r"'blue crad' is none of the 2 classes .* did you mean 'blue card'"):
        data_set(open_labelled(str(tmp_path)), make_prompts(["red card", "blue card"], ["{}"]))


def test_a_model_without_errors_has_no_confusions_and_no_wrong_examples(tmp_path):
    write_tree(tmp_path, list(COLOURS), copies=1)
    data = DataSet(open_labelled(str(tmp_path)), make_prompts(list(COLOURS)))
    result = zero_shot(Features(ColourEncoder()), data)
    assert result["metrics"] == {"top1": 1.0, "top5": 1.0, "mean_per_class_recall": 1.0}
    assert (result["confusions"], result["wrong"]) == ([], [])
