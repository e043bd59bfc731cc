from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from diptych.encoder import Encoder
from diptych.evaluation.data_sets import DataSet
from diptych.evaluation.features import Features
from diptych.evaluation.few_shot import few_shot
from diptych.evaluation.linear_probe import (
    embedding_probe,
    evenly,
    fit_pixel_baseline,
    linear_probe,
    pixel_baseline,
    remarks,
)
from diptych.evaluation.picture_sources import open_labelled
from diptych.evaluation.prompts import make_prompts
from tests.evaluation.colours import COLOURS, ColourEncoder, picture, write_tree
from tests.test_encoder import TOKENIZER, dual_encoder, model_config

PROMPTS = make_prompts(["green", "red"], ["{}"])


def test_a_probe_on_colours_names_colours_and_says_which_it_never_saw(tmp_path):
    train = write_tree(tmp_path / "train", ["red", "green", "blue"], copies=6)
    test = write_tree(tmp_path / "test", ["red", "green", "cyan"], copies=4)

    data = DataSet(open_labelled(str(test)), train=open_labelled(str(train)))
    result = linear_probe(Features(ColourEncoder()), data)

    assert result["metrics"]["top1"] == pytest.approx(8 / 12)
    assert result["share_of_known_classes"] == pytest.approx(8 / 12)
    assert result["chance"]["top1"] == pytest.approx(1 / 3)
    assert result["train_pictures"] == 18
    assert result["converged"]
    json.dumps(result, allow_nan=False)


@pytest.mark.parametrize("measure", [linear_probe, embedding_probe, pixel_baseline, few_shot])
def test_a_probe_that_was_fitted_to_the_pictures_it_is_measured_on_says_so(tmp_path, measure):
    train = open_labelled(str(write_tree(tmp_path / "train", ["red", "green"], copies=6)))
    folder = write_tree(tmp_path / "test", ["red", "green"], copies=3)
    for label in ("red", "green"):
        (folder / label / "0.png").write_bytes(picture([value // 2 for value in COLOURS[label]]))
    result = measure(Features(ColourEncoder()), DataSet(open_labelled(str(folder)), PROMPTS, train))
    assert result["share_fitted"] == pytest.approx(4 / 6)
    assert any("fitted to 66.7 % of these pictures themselves" in each for each in remarks(result))


def test_the_pixel_baseline_sees_pixels_and_says_how_many(tmp_path):
    train = write_tree(tmp_path / "train", ["red", "green", "blue", "yellow"], copies=5)
    pictures = open_labelled(str(train))
    result = pixel_baseline(Features(ColourEncoder()), DataSet(pictures, train=pictures))
    assert result["metrics"]["top1"] == 1
    assert result["pixels"] == "32x32x3"
    assert result["features"] == 3072


def test_the_pixel_baseline_shrinks_pictures_and_leaves_some_out_when_there_are_many(tmp_path, monkeypatch):
    monkeypatch.setattr("diptych.evaluation.linear_probe.MOST_PIXEL_WORK", 3 * 6 * 8 * 8 * 3)
    train = write_tree(tmp_path / "train", ["red", "green", "blue"], copies=9)
    probe = fit_pixel_baseline(Features(ColourEncoder()), open_labelled(str(train)))
    assert probe.facts["pixels"] == "8x8x3"
    assert (probe.facts["train_pictures"], probe.facts["train_pictures_available"]) == (6, 27)
    assert probe.fitted.model.classes_.tolist() == ["blue", "green", "red"]


def test_a_limit_takes_equally_many_of_each_class():
    labels = np.array(["a"] * 50 + ["b"] * 3 + ["c"] * 20)
    chosen = evenly(labels, 12)
    assert dict(zip(*np.unique(labels[chosen], return_counts=True), strict=True)) in (
        {"a": 5, "b": 3, "c": 4},
        {"a": 4, "b": 3, "c": 5},
    )
    assert chosen.tolist() == evenly(labels, 12).tolist()


def test_one_class_cannot_be_fitted(tmp_path):
    train = write_tree(tmp_path / "train", ["red"])
    with pytest.raises(ValueError, match="at least two"):
        linear_probe(Features(ColourEncoder()), DataSet(open_labelled(str(train)), train=open_labelled(str(train))))


def test_a_probe_reads_what_the_image_tower_gives_or_the_embeddings(tmp_path):
    pictures = open_labelled(str(write_tree(tmp_path / "train", ["red", "green", "blue"], copies=4)))
    config = model_config()
    features = Features(Encoder(dual_encoder(config), TOKENIZER, config, torch.device("cpu")))
    data = DataSet(pictures, train=pictures)

    of_tower, of_embeddings = linear_probe(features, data), embedding_probe(features, data)

    assert (of_tower["features"], of_embeddings["features"]) == (32, config.embed_dim)
    assert of_tower["of"] == "image tower, before the projection"
    assert of_embeddings["of"] == "embeddings"
    assert of_tower["search_iterations"] == 1000
