from __future__ import annotations

import numpy as np
import pytest

from diptych.evaluation.comparison import compare
from diptych.evaluation.intervals import as_result, grouped_share, per_class_share, share_of
from diptych.terminal import points, points_range


def zero_shot(ranks, labels):
    right = ranks == 0
    measured = {
        "top1": share_of(right),
        "top5": share_of(ranks < 5),
        "mean_per_class_recall": per_class_share(right, labels),
    }
    predictions = [[f"{place}.png", int(label), 0] for place, label in enumerate(labels)]
    return {**as_result(measured), "classes": list("abcd"), "predictions": predictions, "ranks": ranks.tolist()}


def retrieval(to_text, to_image, picture_of_caption):
    measured = {}
    for k in (1, 5):
        measured[f"image_to_text_r{k}"] = share_of(to_text < k)
        measured[f"text_to_image_r{k}"] = grouped_share(to_image < k, picture_of_caption)
    ranks = {
        "pictures": [f"{place}.png" for place in range(len(to_text))],
        "image_to_text": to_text.tolist(),
        "picture_of_caption": picture_of_caption.tolist(),
        "text_to_image": to_image.tolist(),
    }
    return {**as_result(measured), "ranks": ranks}


def evaluations():
    """Two models, of which the second ranks a tenth of the right answers better and none worse."""
    random = np.random.default_rng(2)
    labels, ranks = random.integers(4, size=600), random.integers(8, size=600)
    better = np.where(random.random(600) < 0.1, 0, ranks)
    picture_of_caption = np.repeat(np.arange(200), 3)
    return [
        {
            "zero_shot": {"photos": zero_shot(each, labels)},
            "retrieval": {"pairs": retrieval(each[:200], each, picture_of_caption)},
        }
        for each in (ranks, better)
    ]


def test_every_number_that_two_models_have_of_the_same_pictures_is_compared():
    first, second = evaluations()
    compared = list(compare(first, second))
    assert {(each.evaluator, each.metric) for each in compared} == {
        *(("zero_shot", metric) for metric in ("top1", "top5", "mean_per_class_recall")),
        *(("retrieval", f"{way}_r{k}") for way in ("image_to_text", "text_to_image") for k in (1, 5)),
    }
    for each in compared:
        assert each.difference.value == pytest.approx(each.second - each.first)
        low, high = each.difference.interval
        assert low < each.difference.value < high
        if each.evaluator == "zero_shot":
            assert low > 0 and each.difference.p_value < 0.02
    assert {each.difference.test for each in compared if each.metric == "top1"} == {"McNemar, exact"}


def test_a_model_compared_with_itself_differs_by_nothing():
    first, _ = evaluations()
    for each in compare(first, first):
        assert each.difference.value == 0 and each.difference.p_value == 1


@pytest.mark.parametrize("captions", [1, 2])
def test_few_answers_that_differ_are_no_proof_and_none_is_no_certainty(captions):
    picture_of_caption = np.repeat(np.arange(400), captions)
    first = np.arange(400 * captions) % 2
    second = np.where(np.arange(400 * captions) < 10, 0, first)  # five more are right, and none less
    result = {}
    for name, to_image in (("first", first), ("second", second)):
        found = retrieval(np.zeros(400, dtype=int), to_image, picture_of_caption)
        result[name] = {"retrieval": {"pairs": found}}
    itself, other = (
        next(each.difference for each in compare(result["first"], result[name]) if each.metric == "text_to_image_r1")
        for name in ("first", "second")
    )
    assert itself.interval[0] < 0 < itself.interval[1] and itself.p_value == 1
    assert other.value == pytest.approx(5 / 400 / captions)
    assert 0.03 < other.p_value < 0.1  # 0.0625 by McNemar's exact test
    assert other.interval[0] < other.value < other.interval[1]


def compositional(right, of="these"):
    """The result of a model with these answers to examples."""
    metrics = {name: float(np.mean(each)) for name, each in right.items()}
    return {"compositional": {"winoground": {"metrics": metrics, "answers": {"of": of, "right": right}}}}


def test_examples_of_two_pictures_and_captions_are_compared_by_mcnemars_test():
    first = {"text_score": [1] * 40 + [0] * 60, "group_score": [1, 0] * 50}
    second = {"text_score": [0] * 2 + [1] * 50 + [0] * 48, "group_score": [1, 0] * 50}
    compared = {each.metric: each.difference for each in compare(compositional(first), compositional(second))}
    assert compared["text_score"].value == pytest.approx(0.1)  # twelve gained, two lost
    assert compared["text_score"].p_value == pytest.approx(2 * (1 + 14 + 91) / 2**14)
    assert compared["text_score"].test == "McNemar, exact"
    assert (compared["group_score"].value, compared["group_score"].p_value) == (0, 1)
    assert not list(compare(compositional(first), compositional(second, of="others")))


def associated(scores, of="these"):
    """The result of a model with these Jaccard indices, of which the first half has few candidates."""
    parts = {"jaccard": [*range(len(scores))], "jaccard_5_6": [*range(len(scores) // 2)], "jaccard_10_12": []}
    metrics = {name: float(np.mean(np.array(scores)[part])) if part else None for name, part in parts.items()}
    answers = {"of": of, "jaccard": [*scores], "parts": parts}
    return {"association": {"winogavil": {"metrics": metrics, "answers": answers}}}


def test_partly_right_answers_to_cues_are_compared_by_a_paired_bootstrap():
    random = np.random.default_rng(3)
    first = random.choice([0, 1 / 3, 1], size=400)
    change = random.choice([-0.25, 0, 0.4], size=400, p=[0.2, 0.5, 0.3])
    second = np.clip(first + change, 0, 1)
    compared = {each.metric: each.difference for each in compare(associated(first), associated(second))}
    assert compared.keys() == {"jaccard", "jaccard_5_6"}
    for metric, of_part in (("jaccard", slice(400)), ("jaccard_5_6", slice(200))):
        found, differences = compared[metric], (second - first)[of_part]
        assert found.value == pytest.approx(differences.mean())
        # The normal approximation of the mean's error, with two more cues; the bootstrap's own error is a few per cent.
        half = 1.96 * np.append(differences, [1, -1]).std() / np.sqrt(len(differences))
        assert np.diff(found.interval)[0] == pytest.approx(2 * half, rel=0.15)
        assert found.interval[0] < found.value < found.interval[1] and found.test == "paired bootstrap"

    (itself, *_) = compare(associated(first), associated(first))
    assert itself.difference.value == 0 and itself.difference.p_value == 1
    # Five that gain and none that loses are no proof, as McNemar's test says of right and wrong answers (0.0625).
    (few, *_) = compare(associated([0.0] * 400), associated([1.0] * 5 + [0.0] * 395))
    assert 0.03 < few.difference.p_value < 0.1
    assert not list(compare(associated(first), associated(second, of="others")))


def test_a_difference_that_rounds_to_nothing_has_no_minus():
    assert [points(each) for each in (-1e-16, -0.0004, 0.013, -0.0125)] == ["+0.0", "+0.0", "+1.3", "-1.2"]
    assert points_range(-0.0001, 0.5) == "+0.0 to +50.0"


def test_results_on_other_pictures_are_not_compared():
    first, second = evaluations()
    second["zero_shot"]["photos"]["predictions"][7][0] = "another.png"
    second["retrieval"]["pairs"]["ranks"]["pictures"][0] = "another.png"
    assert list(compare(first, second)) == []


def test_results_of_earlier_versions_are_not_compared():
    first, second = evaluations()
    for evaluation in (first, second):
        del evaluation["zero_shot"]["photos"]["ranks"]
    assert {each.evaluator for each in compare(first, second)} == {"retrieval"}


def test_one_text_of_many_pictures_is_one_answer():
    """Two texts, each the caption of a hundred pictures: the second model finds one of them, the first none."""
    captions = np.repeat([0, 1], 100)
    results = []
    for found in (np.full(200, 9), np.where(captions == 0, 0, 9)):
        result = retrieval(found, found, np.arange(200))
        result["ranks"]["group_of_caption"] = captions.tolist()
        results.append({"retrieval": {"pairs": result}})
    [difference] = [each.difference for each in compare(*results) if each.metric == "text_to_image_r1"]
    assert difference.value == 0.5 and difference.p_value > 0.05 and difference.interval[0] <= 0
