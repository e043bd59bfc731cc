"""Measure zero-shot classification of pictures with any number of labels: each label ranks all pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from diptych.errors import UserError
from diptych.evaluation.average_precision import (
    Ranking,
    average_precision,
    eleven_point_precision,
    measured_by,
    ranking,
    roc_auc,
    steps_of,
)
from diptych.evaluation.data_sets import DataSet
from diptych.evaluation.evaluator import Result
from diptych.evaluation.features import Features
from diptych.evaluation.intervals import as_result
from diptych.evaluation.prompts import build_classifier
from diptych.evaluation.similarity import Array, similarities, unit_norm

MOST_RANKS = 2_000_000
"""Pictures x classes of which the results hold a rank each, some 10 bytes; COCO has 400,000."""
MEASURES = {
    "mean_average_precision": average_precision,
    "mean_average_precision_11_points": eleven_point_precision,
    "mean_roc_auc": roc_auc,
}


def multi_label(features: Features, data: DataSet) -> Result:
    """Measure mean average precision, over all points and over 11 (VOC 2007), and the mean area under the ROC curve.

    Each class ranks all pictures by their similarity to its prompts. The means are over the classes that some pictures
    have and others have not.

    Raises:
        ValueError: no picture can be decoded, or no class is in some pictures and not in others.
    """
    pictures, prompts = data.pictures, data.prompts
    classifier = features.once(prompts, lambda: build_classifier(features, prompts.classes, prompts.templates))
    embedded = features.pictures(pictures)
    has_label = label_matrix(data)[embedded.kept]
    cosines = similarities(unit_norm(embedded.embeddings), classifier)
    shares = has_label.mean(axis=0)
    told_apart = np.flatnonzero((shares > 0) & (shares < 1))
    if not len(told_apart):
        raise UserError(
            f"{pictures.location}: every class is in all of the pictures or in none; expected labels that differ"
        )
    rankings = [ranking(cosines[:, each], has_label[:, each]) for each in told_apart]
    whole = np.ones((1, len(has_label)), dtype=np.int64)
    prevalence = float(shares[told_apart].mean())
    return {
        "pictures": len(has_label),
        "rejected": embedded.rejected,
        **as_result({name: measured_by(measure, rankings) for name, measure in MEASURES.items()}),
        "chance": {
            "mean_average_precision": prevalence,
            "mean_average_precision_11_points": prevalence,
            "mean_roc_auc": 0.5,
        },
        "classes": list(prompts.class_names),
        "per_class": [
            [int(each), int(has_label[:, each].sum()), float(average_precision(ranked, whole)[0])]
            for each, ranked in zip(told_apart, rankings, strict=True)
        ],
        **_for_comparison([pictures.names[place] for place in embedded.kept], has_label, told_apart, rankings),
    }


def _for_comparison(
    names: Sequence[str], has_label: Array, told_apart: Array, rankings: Sequence[Ranking]
) -> dict[str, Any]:
    """What a paired test with another model needs; nothing of data sets for which that would be too much."""
    if len(names) * len(told_apart) > MOST_RANKS:
        return {}
    return {
        "ranks": {
            "pictures": list(names),
            "labels": [np.flatnonzero(each).tolist() for each in has_label],
            "of_class": {
                str(each): steps_of(ranked).tolist() for each, ranked in zip(told_apart, rankings, strict=True)
            },
        }
    }


def label_matrix(data: DataSet) -> Array:
    """bool[pictures classes]: which pictures have which labels."""
    places = {name: place for place, name in enumerate(data.prompts.class_names)}
    has_label = np.zeros((len(data.pictures), len(places)), dtype=bool)
    for picture, labels in enumerate(data.pictures.label_sets):
        has_label[picture, [places[label] for label in labels]] = True
    return has_label
