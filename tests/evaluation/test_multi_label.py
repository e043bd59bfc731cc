from __future__ import annotations

import json

import numpy as np
import pytest

from diptych.evaluation.average_precision import ranking, steps_of
from diptych.evaluation.comparison import compare
from diptych.evaluation.data_sets import data_set, open_data
from diptych.evaluation.features import Features
from diptych.evaluation.multi_label import multi_label
from diptych.evaluation.prompts import make_prompts
from tests.evaluation.colours import ColourEncoder, picture

CLASSES = ["red", "green", "blue", "yellow"]


def write_table(folder, pictures=60):
    """Pictures of random colours, each labelled with the primary colours that it is full of."""
    random = np.random.default_rng(0)
    rows, labels, pixels = ["path,label"], [], []
    for number in range(pictures):
        colour = random.integers(256, size=3)
        labels.append([bool(value > 128) for value in colour])
        pixels.append(colour)
        (folder / f"{number}.png").write_bytes(picture(colour.tolist()))
        rows.append(f"{number}.png," + "|".join(np.array(CLASSES[:3])[labels[-1]]))
    (folder / "data.csv").write_text("\n".join(rows))
    return str(folder / "data.csv"), np.array(labels), np.array(pixels, dtype=float)


def test_means_equal_scikit_learn_on_the_same_similarities(tmp_path):
    metrics = pytest.importorskip("sklearn.metrics")
    table, labels, pixels = write_table(tmp_path)
    data = data_set(open_data(table, "label_sets"), make_prompts(CLASSES, ["{}"]))

    result = multi_label(Features(ColourEncoder()), data)

    texts = ColourEncoder().embed_texts(CLASSES[:3])
    cosines = pixels @ texts.T / np.linalg.norm(pixels, axis=1)[:, None] / np.linalg.norm(texts, axis=1)
    precision = metrics.average_precision_score(labels, cosines, average=None)
    assert result["metrics"]["mean_average_precision"] == pytest.approx(precision.mean())
    assert [each[2] for each in result["per_class"]] == pytest.approx(list(precision))
    assert result["metrics"]["mean_roc_auc"] == pytest.approx(metrics.roc_auc_score(labels, cosines))
    assert result["chance"]["mean_average_precision"] == pytest.approx(labels.mean())
    assert [each[:2] for each in result["per_class"]] == [[n, labels[:, n].sum()] for n in range(3)]  # none is yellow
    for name, value in result["metrics"].items():
        low, high = result["intervals"][name]
        assert low < value < high
    json.dumps(result, allow_nan=False)


class Confused(ColourEncoder):
    """Mostly takes red for green, and green for red."""

    def embed_texts(self, texts):
        red, green = super().embed_texts(["red", "green"])
        mixed = {"red": 0.3 * red + 0.7 * green, "green": 0.7 * red + 0.3 * green}
        return np.stack([mixed.get(text, super(Confused, self).embed_texts([text])[0]) for text in texts])


def test_two_models_are_compared_on_the_same_resamples_of_the_pictures(tmp_path):
    table, _, _ = write_table(tmp_path)
    data = data_set(open_data(table, "label_sets"), make_prompts(CLASSES, ["{}"]))
    good, bad = (json.loads(json.dumps(multi_label(Features(each), data))) for each in (ColourEncoder(), Confused()))

    (found,) = compare({"multi_label": {"a": good}}, {"multi_label": {"a": bad}})
    assert (found.evaluator, found.metric) == ("multi_label", "mean_average_precision")
    assert found.difference.value == pytest.approx(found.second - found.first)
    low, high = found.difference.interval
    assert low < found.difference.value < high < 0 and found.difference.p_value < 0.05
    # Narrower than the intervals of the two side by side, since both see the same pictures.
    assert high - low < np.ptp(good["intervals"]["mean_average_precision"])

    (itself,) = compare({"multi_label": {"a": good}}, {"multi_label": {"a": good}})
    low, high = itself.difference.interval
    assert low < 0 < high and itself.difference.p_value == 1
    bad["ranks"]["labels"][0] = []
    assert list(compare({"multi_label": {"a": good}}, {"multi_label": {"a": bad}})) == []


@pytest.mark.parametrize("scores", [[0.3, 0.3, -1, 2, 0.3], [1, 1, 1], [5, 4, 3]])
def test_the_steps_of_a_ranking_give_it_again(scores):
    ranked = ranking(np.array(scores, dtype=float), np.arange(len(scores)) % 2 == 0)
    again = ranking(-steps_of(ranked), ranked.has_label)
    assert again.order.tolist() == ranked.order.tolist() and again.ends.tolist() == ranked.ends.tolist()


def test_a_label_that_is_no_class_is_one_line(tmp_path):
    table, _, _ = write_table(tmp_path, pictures=5)
    with pytest.raises(ValueError, match="is none of the 2 classes"):
        data_set(open_data(table, "label_sets"), make_prompts(["red", "yellow"]))


def test_labels_that_tell_no_pictures_apart_are_one_line(tmp_path):
    (tmp_path / "a.png").write_bytes(picture((255, 0, 0)))
    (tmp_path / "data.csv").write_text("path,label\na.png,red\n")
    data = data_set(open_data(str(tmp_path / "data.csv"), "label_sets"), make_prompts(["red", "blue"]))
    with pytest.raises(ValueError, match="every class is in all of the pictures or in none"):
        multi_label(Features(ColourEncoder()), data)
