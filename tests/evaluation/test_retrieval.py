from __future__ import annotations

import json

import numpy as np
import pytest

from diptych.evaluation.data_sets import DataSet
from diptych.evaluation.features import Features
from diptych.evaluation.picture_sources import open_captioned
from diptych.evaluation.retrieval import chance_at, pair, ranks, retrieval
from diptych.evaluation.similarity import unit_norm
from tests.evaluation.colours import COLOURS, ColourEncoder, picture


def naive_ranks(images, texts, captions):
    """Ranks over all captions, with repeated ones, by the definition: the number of wrong answers at least as near."""
    flat = [(picture, caption) for picture, own in enumerate(captions) for caption in own]
    order = list(dict.fromkeys(caption for _, caption in flat))
    cosines = images.astype(np.float64) @ texts.astype(np.float64).T
    to_text, to_image = [], []
    for number, own in enumerate(captions):
        best = max(cosines[number, order.index(caption)] for caption in own)
        to_text.append(sum(cosines[number, order.index(other)] >= best for _, other in flat if other not in own))
    for _, caption in flat:
        right = [number for number, own in enumerate(captions) if caption in own]
        column = cosines[:, order.index(caption)]
        best = max(column[number] for number in right)
        to_image.append(sum(column[number] >= best for number in range(len(captions)) if number not in right))
    return np.array(to_text), np.array(to_image)


def test_ranks_equal_the_definition_with_several_captions_and_shared_ones(monkeypatch):
    random = np.random.default_rng(3)
    captions = [[f"c{number}" for number in random.integers(25, size=random.integers(1, 5))] for _ in range(60)]
    pairing = pair(captions)
    images = unit_norm(random.normal(size=(60, 6)))
    texts = unit_norm(random.normal(size=(len(pairing.texts), 6)))
    monkeypatch.setattr("diptych.evaluation.similarity.MOST_NUMBERS", 300)  # several blocks

    to_text = ranks(images, texts, pairing.texts_of_picture, pairing.weights)
    to_image = ranks(texts, images, pairing.pictures_of_text, np.ones(60, dtype=np.int64))

    expected_text, expected_image = naive_ranks(images, texts, captions)
    np.testing.assert_array_equal(to_text, expected_text)
    assert np.repeat(to_image, pairing.weights).sum() == expected_image.sum()
    assert np.average(to_image < 5, weights=pairing.weights) == pytest.approx(np.mean(expected_image < 5))


def test_captions_with_equal_tokens_are_one_text():
    pairing = pair([["A  dog"], ["a dog"], ["a dog &amp; a cat", "a dog"]])
    assert pairing.texts == ("A dog", "a dog & a cat")
    assert pairing.weights.tolist() == [3, 1]
    assert pairing.pictures_of_text.of(0).tolist() == [0, 1, 2]
    assert pairing.texts_of_picture.of(2).tolist() == [0, 1]


def test_captions_of_one_picture_and_equal_ones_are_one_group():
    pairing = pair([("a cat", "my cat"), ("my cat",), ("a dog",), ("a Dog", "a pet"), ("alone",)])
    assert pairing.group_of_caption().tolist() == [0, 0, 0, 2, 2, 2, 4]


def test_a_tie_with_a_wrong_answer_is_a_miss():
    texts = unit_norm(np.array([[1, 0], [1, 0], [0, 1]]))
    pairing = pair([["one"], ["two"], ["three"]])
    found = ranks(unit_norm(np.array([[1, 0], [1, 0], [0, 1]])), texts, pairing.texts_of_picture, pairing.weights)
    assert found.tolist() == [1, 1, 0]


def test_chance_is_the_share_of_random_draws_that_hold_a_right_answer():
    random = np.random.default_rng(0)
    draws = np.array([(random.permutation(20)[:5] < 3).any() for _ in range(20_000)])
    # Standard deviation of the mean of 20,000 draws: 0.0035; four of them.
    assert chance_at(5, 20, np.array([3]))[0] == pytest.approx(draws.mean(), abs=0.014)
    assert chance_at(10, 4, np.array([1]))[0] == 1


def test_retrieval_of_real_pictures_reads_a_folder_and_shows_the_nearest_captions(tmp_path):
    for colour, pixels in COLOURS.items():
        (tmp_path / f"{colour}.png").write_bytes(picture(pixels))
        (tmp_path / f"{colour}.txt").write_text(f"a {colour} wall\n")
    (tmp_path / "red.txt").write_text("a cyan sky")

    result = retrieval(Features(ColourEncoder()), DataSet(open_captioned(str(tmp_path))))

    assert result["metrics"]["image_to_text_r1"] == pytest.approx(4 / 6)  # the cyan picture's two captions tie
    assert result["metrics"]["text_to_image_r1"] == pytest.approx(5 / 6)
    assert result["chance"]["image_to_text_r5"] == pytest.approx(5 / 6)
    assert result["examples"][0]["nearest"][0]["caption"] == "a blue wall"
    json.dumps(result, allow_nan=False)


def test_if_captions_repeat_random_embeddings_reach_what_chance_says():
    random = np.random.default_rng(0)
    pairing = pair([[f"caption {number % 12}"] for number in range(60)])
    images, texts = random.normal(size=(60, 8)), random.normal(size=(12, 8))
    unit = [vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in (images, texts)]
    found = [
        (ranks(unit[0], np.roll(unit[1], shift, axis=0), pairing.texts_of_picture, np.ones(12, dtype=np.int64)) < 5)
        for shift in range(12)
    ]
    # Over all twelve rotations each picture's right text takes each place once: exactly five of twelve.
    assert np.mean(found) == pytest.approx(chance_at(5, 12, np.array([1]))[0])
