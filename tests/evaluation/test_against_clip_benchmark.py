"""The same numbers as CLIP_benchmark's formulas, which are written out here, on the same features."""

from __future__ import annotations

import numpy as np
import pytest

from diptych.evaluation.intervals import grouped_share, share_of
from diptych.evaluation.retrieval import pair, ranks
from diptych.evaluation.similarity import unit_norm
from diptych.evaluation.zero_shot import accuracy, judge


def accuracy_at(logits, target, k):
    """The share of pictures whose class is among the k highest logits (`accuracy`)."""
    highest = np.argsort(-logits, axis=1)[:, :k]
    return (highest == target[:, None]).any(axis=1).mean()


def recall_at(scores, positive_pairs, k):
    """The share of queries with a positive among the k highest scores (`recall_at_k` > 0)."""
    highest = np.argsort(-scores, axis=1)[:, :k]
    return np.take_along_axis(positive_pairs, highest, axis=1).any(axis=1).mean()


def test_zero_shot_equals_its_accuracy_and_balanced_accuracy():
    metrics = pytest.importorskip("sklearn.metrics")
    random = np.random.default_rng(5)
    images, classifier = unit_norm(random.normal(size=(400, 16))), unit_norm(random.normal(size=(23, 16)))
    target = random.integers(23, size=400)
    logits = 100 * images @ classifier.T

    measured = accuracy(judge(images, classifier, target, 100.0), target, 23)

    assert measured["top1"].value == pytest.approx(accuracy_at(logits, target, 1))
    assert measured["top5"].value == pytest.approx(accuracy_at(logits, target, 5))
    expected = metrics.balanced_accuracy_score(target, logits.argmax(axis=1))
    assert measured["mean_per_class_recall"].value == pytest.approx(expected)


def test_two_classes_have_the_area_under_the_curve_of_the_second_class():
    metrics = pytest.importorskip("sklearn.metrics")
    random = np.random.default_rng(5)
    images, classifier = unit_norm(random.normal(size=(400, 16))), unit_norm(random.normal(size=(2, 16)))
    target = random.integers(2, size=400)

    measured = accuracy(judge(images, classifier, target, 100.0), target, 2)["roc_auc"]

    expected = metrics.roc_auc_score(target, (images @ classifier.T)[:, 1] - (images @ classifier.T)[:, 0])
    assert measured.value == pytest.approx(expected, abs=1e-6)  # the scores are rounded to float32
    assert measured.interval[0] < measured.value < measured.interval[1]


@pytest.mark.parametrize("k", [1, 5, 10])
def test_retrieval_equals_its_recall_in_both_directions_with_several_captions_a_picture(k):
    random = np.random.default_rng(6)
    images = unit_norm(random.normal(size=(120, 12)))
    own = random.integers(1, 6, size=120)
    image_of_text = np.repeat(np.arange(120), own)
    texts = unit_norm(images[image_of_text] + 0.8 * unit_norm(random.normal(size=(len(image_of_text), 12))))
    scores = texts @ images.T
    positive_pairs = np.zeros(scores.shape, dtype=bool)
    positive_pairs[np.arange(len(scores)), image_of_text] = True

    pairing = pair([[f"caption {image} {number}" for number in range(own[image])] for image in range(120)])
    to_text = ranks(images, texts, pairing.texts_of_picture, np.ones(len(texts), dtype=np.int64))
    to_image = ranks(texts, images, pairing.pictures_of_text, np.ones(120, dtype=np.int64))
    text_to_image = grouped_share(to_image[pairing.text_of_caption] < k, pairing.picture_of_caption)

    assert share_of(to_text < k).value == pytest.approx(recall_at(scores.T, positive_pairs.T, k))
    assert text_to_image.value == pytest.approx(recall_at(scores, positive_pairs, k))
