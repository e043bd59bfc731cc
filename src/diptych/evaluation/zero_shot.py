"""Measure zero-shot classification: a picture gets the class with the nearest prompts (paper, section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from diptych.data.picture_safety import open_picture
from diptych.evaluation.average_precision import measured_by, ranking, roc_auc
from diptych.evaluation.data_sets import DataSet
from diptych.evaluation.evaluator import Result
from diptych.evaluation.features import Features
from diptych.evaluation.intervals import Measured, as_result, per_class_share, share_of
from diptych.evaluation.labels import label_numbers
from diptych.evaluation.pictures import Pictures
from diptych.evaluation.prompts import Prompts, build_classifier
from diptych.evaluation.similarity import Array, blocks, similarities, unit_norm
from diptych.evaluation.word_classifier import WordClassifier
from diptych.pages.thumbnail import thumbnail_uri

GUESSES = 3
MOST_CONFUSIONS = 10_000
EXAMPLES = 12
SAMPLE = 6
"""Number of evenly spaced pictures, right or wrong, in the result."""
THUMBNAIL_PIXELS = 112


@dataclass(frozen=True)
class Judged:
    """A classifier's answers for each picture."""

    scores: Array
    """f32[pictures]: how much nearer the second class is than the first; NaN with fewer than two."""
    predicted: Array
    """i64[pictures]: the true class if it is nearer than every other one, else the nearest of the others."""
    above: Array
    """i64[pictures]: how many other classes are at least as near as the true one; 0 means a right answer."""
    guesses: Array
    """i64[pictures guesses]: the nearest classes, nearest first."""
    probabilities: Array
    """f64[pictures guesses]: their softmax over all classes."""


def zero_shot(features: Features, data: DataSet) -> Result:
    """Measure top-1, top-5 (null below six classes) and mean per-class recall, with confusions and examples.

    Between two classes the area under the ROC curve is measured too, for the second class.

    Raises:
        ValueError: a label is not a class, or no picture can be decoded.
    """
    pictures, class_names = data.pictures, data.prompts.class_names
    labels, judged = answers(features, data)
    embedded = features.pictures(pictures)
    confusions, left_out = _confusions(labels, judged.predicted)
    return {
        "pictures": len(labels),
        "rejected": embedded.rejected,
        **as_result(accuracy(judged, labels, len(class_names))),
        "chance": {
            "top1": 1 / len(class_names),
            "top5": 5 / len(class_names) if len(class_names) > 5 else None,
            "mean_per_class_recall": 1 / len(class_names),
            **({"roc_auc": 0.5} if len(class_names) == 2 else {}),
        },
        "classes": list(class_names),
        "per_class": _per_class(labels, judged.above == 0),
        "confusions": confusions,
        "confusions_left_out": left_out,
        "predictions": [
            [pictures.names[place], int(label), int(guess)]
            for place, label, guess in zip(embedded.kept, labels, judged.predicted, strict=True)
        ],
        "ranks": judged.above.tolist(),
        "sample": _examples(pictures, embedded.kept, labels, judged, _spread(np.arange(len(labels)), SAMPLE)),
        "right": _examples(pictures, embedded.kept, labels, judged, _least_certain_right(labels, judged)),
        "wrong": _examples(pictures, embedded.kept, labels, judged, _most_confident_errors(labels, judged)),
    }


def answers(features: Features, data: DataSet) -> tuple[Array, Judged]:
    """The class of each picture that can be decoded, i64[pictures], and what zero-shot answers.

    Raises:
        ValueError: as `zero_shot`.
    """
    prompts = data.prompts
    labels = label_numbers(data.pictures, prompts.class_names)
    classifier = features.once(prompts, lambda: classifier_of(features, prompts))
    embedded = features.pictures(data.pictures)
    labels = labels[embedded.kept]
    return labels, judge(embedded.embeddings, classifier, labels, features.logit_scale)


def classifier_of(features: Features, prompts: Prompts) -> Array | WordClassifier:
    """What scores the classes for a picture: the embeddings of their prompts, or how probable their words are."""
    if hasattr(features.encoder, "scores"):
        return WordClassifier(features.encoder, prompts)
    return build_classifier(features, prompts.classes, prompts.templates)


def judge(embeddings: Array, classifier: Array | WordClassifier, labels: Array, logit_scale: float) -> Judged:
    """Classify pictures from their embeddings; ties and NaN count against the true class."""
    if isinstance(classifier, np.ndarray):
        embeddings = unit_norm(embeddings)
    parts = []
    num_guesses = min(GUESSES, len(classifier))
    for rows in blocks(len(embeddings), len(classifier)):
        if isinstance(classifier, np.ndarray):
            cosines = similarities(embeddings[rows], classifier)
        else:
            cosines = classifier.scores(embeddings[rows])
        place, true = np.arange(len(cosines)), labels[rows]
        beaten = cosines < cosines[place, true][:, None]
        above = np.count_nonzero(~beaten, axis=1) - 1
        guesses = np.argsort(-cosines, axis=1, kind="stable")[:, :num_guesses]

        others = np.where(np.isnan(cosines), -np.inf, cosines)
        others[place, true] = -np.inf
        predicted = np.where(above == 0, true, others.argmax(axis=1))

        logits = logit_scale * cosines.astype(np.float64)
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = np.take_along_axis(weights, guesses, axis=1) / weights.sum(axis=1, keepdims=True)
        scores = cosines[:, 1] - cosines[:, 0] if len(classifier) > 1 else np.full(len(cosines), np.nan)
        parts.append((scores, predicted, above, guesses, probabilities))
    return Judged(*(np.concatenate(each) for each in zip(*parts, strict=True)))


def accuracy(judged: Judged, labels: Array, num_classes: int) -> dict[str, Measured | None]:
    """The metrics; recall is averaged over the classes that have pictures."""
    right = judged.above == 0
    measured = {
        "top1": share_of(right),
        "top5": share_of(judged.above < 5) if num_classes > 5 else None,
        "mean_per_class_recall": per_class_share(right, labels),
    }
    if num_classes == 2:
        ranked = ranking(judged.scores, labels == 1)
        measured["roc_auc"] = measured_by(roc_auc, [ranked])
    return measured


def thumbnail(encoded: bytes) -> str:
    """A small version of the picture, as a data URI."""
    return thumbnail_uri(open_picture(encoded), THUMBNAIL_PIXELS)


def _per_class(labels: Array, right: Array) -> list[list[int]]:
    """[class, pictures, right answers] of each class that has pictures."""
    counts, hits = np.bincount(labels), np.bincount(labels[right], minlength=labels.max() + 1)
    return [[int(each), int(counts[each]), int(hits[each])] for each in np.flatnonzero(counts)]


def _confusions(labels: Array, predicted: Array) -> tuple[list[list[int]], int]:
    """[true class, predicted class, pictures] of the errors, most frequent first, and how many entries were cut."""
    wrong = labels != predicted
    pairs, counts = np.unique(np.stack([labels[wrong], predicted[wrong]], axis=1), axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    found = [[int(pairs[each, 0]), int(pairs[each, 1]), int(counts[each])] for each in order]
    return found[:MOST_CONFUSIONS], max(0, len(found) - MOST_CONFUSIONS)


def _spread(places: Array, most: int) -> Array:
    """Up to `most` of the places, evenly spaced, so that many classes are among them."""
    return places[np.unique(np.linspace(0, len(places) - 1, most).astype(np.int64))] if len(places) else places


def _least_certain_right(labels: Array, judged: Judged) -> Array:
    """The places of up to EXAMPLES right answers, one of each class first, then others; both least certain first."""
    right = np.flatnonzero(judged.above == 0)
    ordered = right[np.argsort(judged.probabilities[right, 0], kind="stable")]
    first = _one_of_each(labels, ordered)
    return np.concatenate([first, ordered[~np.isin(ordered, first)]])[:EXAMPLES]


def _most_confident_errors(labels: Array, judged: Judged) -> Array:
    """The places of up to EXAMPLES wrong answers, most confident first, at most one of each class."""
    wrong = np.flatnonzero(judged.above > 0)
    return _one_of_each(labels, wrong[np.argsort(-judged.probabilities[wrong, 0], kind="stable")])


def _one_of_each(labels: Array, ordered: Array) -> Array:
    """The first of each class, up to EXAMPLES, in the order given."""
    _, first = np.unique(labels[ordered], return_index=True)
    return ordered[np.sort(first)][:EXAMPLES]


def _examples(pictures: Pictures, kept: Array, labels: Array, judged: Judged, chosen: Array) -> list[dict[str, Any]]:
    return [
        {
            "name": pictures.names[kept[place]],
            "picture": thumbnail(pictures.read(int(kept[place]))),
            "label": int(labels[place]),
            "guesses": [
                [int(guess), float(probability)]
                for guess, probability in zip(judged.guesses[place], judged.probabilities[place], strict=True)
            ],
        }
        for place in chosen
    ]
