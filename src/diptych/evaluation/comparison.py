"""Compare the results of two models on the same pictures, with a paired test for each number."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from diptych.evaluation import EVALUATORS
from diptych.evaluation.average_precision import average_precision, mean_of, ranking, resamples_of
from diptych.evaluation.paired import Difference, mcnemar, paired_bootstrap, paired_per_class
from diptych.evaluation.similarity import Array


@dataclass(frozen=True)
class Compared:
    """A number of two models on the same pictures."""

    evaluator: str
    data: str
    metric: str
    first: float
    second: float
    difference: Difference
    """Second minus first."""


def compare(first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[Compared]:
    """Yield each number that two evaluations have of the same pictures.

    first, second: what `diptych evaluate` writes as JSON. A data set is left out if its pictures or their labels differ
    between the two, or if the results of one are of an earlier version, which does not record each answer.
    """
    for evaluator, (record, differences) in PAIRED.items():
        for name, result in second.get(evaluator, {}).items():
            other = first.get(evaluator, {}).get(name)
            if other and record in other and record in result and may_be_the_same(other, result):
                for metric, difference in differences(other, result).items():
                    yield Compared(
                        evaluator, name, metric, other["metrics"][metric], result["metrics"][metric], difference
                    )


def may_be_the_same(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether nothing contradicts that two results are of the same pictures; those of earlier versions have names only.

    Data sets of other pictures often have the same names, such as `0.jpg`.
    """
    known = {result["fingerprint"] for result in (first, second) if "fingerprint" in result}
    return len(known) < 2


def _zero_shot(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Difference]:
    shown = [[(name, label) for name, label, _ in each["predictions"]] for each in (first, second)]
    if shown[0] != shown[1] or first["classes"] != second["classes"]:
        return {}
    ranks = [np.array(each["ranks"]) for each in (first, second)]
    found = {"top1": mcnemar(ranks[0] == 0, ranks[1] == 0)}
    if first["metrics"].get("top5") is not None and second["metrics"].get("top5") is not None:
        found["top5"] = mcnemar(ranks[0] < 5, ranks[1] < 5)
    labels = np.array([label for _, label in shown[0]])
    return {**found, "mean_per_class_recall": paired_per_class(ranks[0] == 0, ranks[1] == 0, labels)}


def _retrieval(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Difference]:
    one, other = first["ranks"], second["ranks"]
    if any(one[key] != other[key] for key in ("pictures", "picture_of_caption")):
        return {}
    group = np.array(one.get("group_of_caption", one["picture_of_caption"]))  # earlier results have no groups
    found = {}
    for k in _recalls(first, second):
        to_text = [np.array(each["image_to_text"]) < k for each in (one, other)]
        found[f"image_to_text_r{k}"] = mcnemar(*to_text)
        to_image = [np.array(each["text_to_image"]) < k for each in (one, other)]
        found[f"text_to_image_r{k}"] = _grouped(to_image[0], to_image[1], group)
    return found


def _multi_label(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Difference]:
    one, other = first["ranks"], second["ranks"]
    if first["classes"] != second["classes"] or any(one[key] != other[key] for key in ("pictures", "labels")):
        return {}
    pictures, classes = len(one["pictures"]), list(one["of_class"])
    has_label = {label: np.array([int(label) in labels for labels in one["labels"]]) for label in classes}
    rankings = [
        [ranking(-np.array(each["of_class"][label]), has_label[label]) for label in classes] for each in (one, other)
    ]
    means = [mean_of(average_precision, each) for each in rankings]
    resamples = resamples_of(2 * len(classes), pictures)
    return {"mean_average_precision": paired_bootstrap(means[0], means[1], pictures, resamples)}


def _fitted(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Difference]:
    one, other = first["answers"], second["answers"]
    if one["of"] != other["of"]:
        return {}
    found = {}
    for metric, draws in one["draws"].items():
        if other["draws"].get(metric) == draws:
            # Of c draws that are right about a picture: c answers that are, and then those that are not.
            right = [(np.arange(draws) < np.array(each["right"][metric])[:, None]).ravel() for each in (one, other)]
            found[metric] = _grouped(right[0], right[1], np.repeat(np.arange(len(one["labels"])), draws))
    if "mean_per_class_recall" in first["metrics"]:
        right = [np.array(each["right"]["top1"]) == 1 for each in (one, other)]
        found["mean_per_class_recall"] = paired_per_class(right[0], right[1], np.array(one["labels"]))
    return found


def _compositional(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Difference]:
    one, other = first["answers"], second["answers"]
    if one["of"] != other["of"]:
        return {}
    return {
        metric: mcnemar(np.array(right, dtype=bool), np.array(other["right"][metric], dtype=bool))
        for metric, right in one["right"].items()
    }


def _association(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Difference]:
    one, other = first["answers"], second["answers"]
    if one["of"] != other["of"]:
        return {}
    found = {}
    for metric, part in one["parts"].items():
        if part:
            scores = [np.array(each["jaccard"], dtype=np.float64)[part] for each in (one, other)]
            found[metric] = _grouped(scores[0], scores[1], np.arange(len(part)))
    return found


def _recalls(first: Mapping[str, Any], second: Mapping[str, Any]) -> Sequence[int]:
    both = first["metrics"].keys() & second["metrics"].keys()
    return sorted(int(name.removeprefix("image_to_text_r")) for name in both if name.startswith("image_to_text_r"))


def _grouped(first: Array, second: Array, group: Array) -> Difference:
    """Compare the shares of right answers, bool[answers] each, that come in groups such as the captions of a picture.

    Answers may also be partly right, f64[answers] from 0 to 1.

    A bootstrap over the groups has an empty interval where no answer differs, and finds too small a probability where
    few do. So it draws from two more answers, of which each model has one right, as Bonett and Price add them.
    """
    groups = len(set(group.tolist()))
    if groups == len(group) and first.dtype == bool:
        return mcnemar(first, second)
    more = np.concatenate([np.unique(group, return_inverse=True)[1], [groups, groups + 1]])
    shares = [
        _share(np.append(right, added), more, groups + 2)
        for right, added in ((first, [True, False]), (second, [False, True]))
    ]
    drawn = paired_bootstrap(shares[0], shares[1], groups + 2)
    return replace(drawn, value=float(second.mean() - first.mean()))


def _share(right: Array, group: Array, groups: int) -> Callable[[Array], Array]:
    """The share of right answers when groups of them are resampled, as `bootstrap` takes it."""
    totals = np.bincount(group, minlength=groups)
    hits = np.bincount(group, weights=right, minlength=groups)
    return lambda counts: (counts @ hits) / (counts @ totals)


PAIRED = {
    "zero_shot": ("ranks", _zero_shot),
    "retrieval": ("ranks", _retrieval),
    "multi_label": ("ranks", _multi_label),
    "compositional": ("answers", _compositional),
    "association": ("answers", _association),
    **{name: ("answers", _fitted) for name, each in EVALUATORS.items() if each.fits},
}
"""Evaluator → where its results have each answer, and what tests each number of two of them."""
