"""The measures that suites name: each one number of what an evaluator measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from diptych.evaluation.intervals import Measured, bootstrapped_share, wilson
from diptych.evaluation.similarity import Array

Subgroups = Array
"""i64[pictures]: the subgroup of each picture that was measured, or -1 for one that counts in none."""


@dataclass(frozen=True)
class Measure:
    """One number of a data set."""

    title: str
    """What tables call it."""
    evaluator: str
    """The evaluator, by its name in EVALUATORS, whose result it is computed from."""
    compute: Callable[[Mapping[str, Any], Subgroups | None], Measured]
    chance: Callable[[Mapping[str, Any]], float | None]
    """What guessing reaches; None if that is not known."""
    needs_subgroups: bool = False


def _chance_of(*names: str) -> Callable[[Mapping[str, Any]], float | None]:
    """The mean of what guessing reaches in these numbers of the evaluator."""

    def chance(result: Mapping[str, Any]) -> float | None:
        known = [each for name in names if (each := result["chance"].get(name)) is not None]
        return sum(known) / len(known) if len(known) == len(names) else None

    return chance


def _number_of(evaluator: str, name: str, title: str) -> Measure:
    """A number that an evaluator gives."""

    def compute(result: Mapping[str, Any], subgroups: Subgroups | None) -> Measured:
        value, interval = result["metrics"].get(name), result["intervals"].get(name)
        if value is None:
            raise ValueError(f"{name} means nothing for {len(result.get('classes', ()))} classes")
        return Measured(value, (interval[0], interval[1]))

    return Measure(title, evaluator, compute, _chance_of(name))


def mean_of_top1_and_top5(result: Mapping[str, Any], subgroups: Subgroups | None) -> Measured:
    """The mean of both accuracies, which Kinetics-700 is measured by."""
    _check_five_mean_something(result, "mean_of_top1_and_top5")
    above = np.asarray(result["ranks"])
    scores = ((above < 1) * 0.5 + (above < 5) * 0.5).astype(np.float64)
    return bootstrapped_share(lambda counts: counts @ scores / len(scores), len(scores))


def f1_macro(result: Mapping[str, Any], subgroups: Subgroups | None) -> Measured:
    """The mean F1 score of the classes that have pictures."""
    labels, guesses = np.array([[label, guess] for _, label, guess in result["predictions"]]).T
    num_classes = int(max(labels.max(), guesses.max())) + 1
    right = labels == guesses

    def mean(counts: Array) -> Array:
        values = []
        for each in counts:
            found = np.bincount(labels, each, num_classes)
            guessed = np.bincount(guesses, each, num_classes)
            hits = np.bincount(labels[right], each[right], num_classes)
            occurs = found > 0
            values.append((2 * hits[occurs] / (found + guessed)[occurs]).mean())
        return np.array(values)

    return bootstrapped_share(mean, len(labels))


def chance_of_f1_macro(result: Mapping[str, Any]) -> float:
    """The mean F1 score of guesses that are equally often each class.

    A class that is the share p of the pictures and q of the guesses has the recall q and the precision p.
    """
    shares = np.array([pictures for _, pictures, _ in result["per_class"]]) / result["pictures"]
    guessed = 1 / len(result["classes"])
    return float((2 * shares * guessed / (shares + guessed)).mean())


def mean_recall_at_1(result: Mapping[str, Any], subgroups: Subgroups | None) -> Measured:
    """The mean of the recall at 1 of captions by picture and of pictures by caption."""
    ranks = result["ranks"]
    to_text = np.asarray(ranks["image_to_text"]) < 1
    picture = np.asarray(ranks["picture_of_caption"])
    captions = np.bincount(picture, minlength=len(to_text))
    found = np.bincount(picture, np.asarray(ranks["text_to_image"]) < 1, minlength=len(to_text))

    def mean(counts: Array) -> Array:
        return ((counts @ to_text) / len(to_text) + (counts @ found) / (counts @ captions)) / 2

    return bootstrapped_share(mean, len(to_text))


def _check_five_mean_something(result: Mapping[str, Any], name: str) -> None:
    """Refuse a measure of five guesses where the evaluator gives no top-5, since five are all classes."""
    if result["metrics"].get("top5") is None:
        raise ValueError(f"{name} means nothing for {len(result.get('classes', ()))} classes")


def _worst_subgroup(below: int) -> Callable[[Mapping[str, Any], Subgroups | None], Measured]:
    """The lowest share, over the subgroups, of pictures whose class is among the first `below`.

    The interval is Wilson's of that subgroup; it takes no account of the choice of the lowest.
    """

    def compute(result: Mapping[str, Any], subgroups: Subgroups | None) -> Measured:
        assert subgroups is not None, "the suite is checked for subgroup_column"
        if below == 5:
            _check_five_mean_something(result, "worst_subgroup_top5")
        right = np.asarray(result["ranks"]) < below
        counted = subgroups >= 0
        if not counted.any():
            raise ValueError("no picture is in a subgroup that counts")
        totals = np.bincount(subgroups[counted])
        hits = np.bincount(subgroups[counted], right[counted], minlength=len(totals))
        occur = totals > 0
        worst = int(np.argmin(hits[occur] / totals[occur]))
        hit, total = float(hits[occur][worst]), float(totals[occur][worst])
        return Measured(hit / total, wilson(hit, total))

    return compute


MEASURES = {
    "top1": _number_of("zero_shot", "top1", "top-1"),
    "top5": _number_of("zero_shot", "top5", "top-5"),
    "mean_per_class_recall": _number_of("zero_shot", "mean_per_class_recall", "per class"),
    "mean_of_top1_and_top5": Measure("top-1 and 5", "zero_shot", mean_of_top1_and_top5, _chance_of("top1", "top5")),
    "roc_auc": _number_of("zero_shot", "roc_auc", "ROC AUC"),
    "f1_macro": Measure("macro F1", "zero_shot", f1_macro, chance_of_f1_macro),
    "worst_subgroup_top1": Measure(
        "worst top-1", "zero_shot", _worst_subgroup(1), _chance_of("top1"), needs_subgroups=True
    ),
    "worst_subgroup_top5": Measure(
        "worst top-5", "zero_shot", _worst_subgroup(5), _chance_of("top5"), needs_subgroups=True
    ),
    "mean_average_precision": _number_of("multi_label", "mean_average_precision", "mAP"),
    "mean_average_precision_11_points": _number_of("multi_label", "mean_average_precision_11_points", "11-point AP"),
    "mean_recall_at_1": Measure(
        "mean R@1", "retrieval", mean_recall_at_1, _chance_of("image_to_text_r1", "text_to_image_r1")
    ),
    "jaccard": _number_of("association", "jaccard", "Jaccard"),
    "jaccard_5_6": _number_of("association", "jaccard_5_6", "Jaccard, 5-6"),
    "jaccard_10_12": _number_of("association", "jaccard_10_12", "Jaccard, 10-12"),
    "image_to_text_r1": _number_of("retrieval", "image_to_text_r1", "R@1 to text"),
    "text_to_image_r1": _number_of("retrieval", "text_to_image_r1", "R@1 to image"),
}
"""What a suite calls a measure → the measure."""
