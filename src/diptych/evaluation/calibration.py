"""Fit on one half of the pictures what makes probabilities believable, and measure on the other half."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from diptych.errors import UserError
from diptych.evaluation.average_precision import ranking, roc_auc
from diptych.evaluation.captions_that_name import Captions
from diptych.evaluation.embedding import embed
from diptych.evaluation.intervals import Interval, wilson
from diptych.evaluation.labels import label_numbers
from diptych.evaluation.null_distribution import (
    IndependentLabels,
    NullDistribution,
    ProbabilityCurve,
    fit_probability_curve,
)
from diptych.evaluation.pictures import Pictures, subset
from diptych.evaluation.prompts import ClassPrompt, Prompts, build_classifier
from diptych.evaluation.similarity import Array, similarities, unit_norm
from diptych.evaluation.temperature_scaling import fit_logit_scale, measure_agreement
from diptych.terminal import counted, is_or_are

if TYPE_CHECKING:
    from diptych.encoder import Encoder

FALSE_ALARM_RATE = 0.01
"""The rate that is measured, and that `classify --independent` keeps by default."""
MOST_PICTURES = 10_000
"""Pictures of all data sets that are used, evenly spaced. Half of them are the null distribution."""
FEWEST_PICTURES = 40
MOST_LABELS = 256
"""Captions that are tried as labels where there are no classes."""
SEED = 0


@dataclass(frozen=True)
class Half:
    """Embedded pictures, and what is known of each."""

    pictures: Array
    """f32[pictures dim], of unit norm."""
    labels: Array
    """i64[pictures]: the class, or -1 for a picture with captions only."""
    captions: tuple[str, ...]
    """The captions of the picture joined, or the names of its class."""


@dataclass(frozen=True)
class Labels:
    names: list[tuple[str, ...]]
    """The names of each label in captions."""
    classifier: Array
    """f32[labels dim]"""


@dataclass(frozen=True)
class Calibration:
    """What `diptych calibrate` found out about a model, as calibration.json has it, and its null distribution."""

    document: dict[str, Any]
    null: NullDistribution | None = None

    @property
    def logit_scale(self) -> float | None:
        """The calibrated factor on cosines before the softmax; None if no labels were given."""
        temperature = self.document.get("temperature")
        return float(temperature["logit_scale"]) if temperature else None

    @property
    def curve(self) -> ProbabilityCurve:
        return ProbabilityCurve(self.document["independent"]["slope"], self.document["independent"]["offset"])


def calibrate(encoder: Encoder, data: Sequence[Pictures], prompts: Prompts) -> Calibration:
    """Fit the temperature to pictures with labels, and the null distribution to all; half of them measure the result.

    prompts: the classes of the labels; none if there are only captions.

    Raises:
        UserError: there are too few pictures.
    """
    fitted, measured = _halves(encoder, data, prompts)
    document: dict[str, Any] = {}
    labels = [_labels_of(encoder, half.captions, prompts) for half in (fitted, measured)]
    if prompts.classes:
        document["temperature"] = _temperature(encoder.logit_scale, labels[0].classifier, fitted, measured) | {
            "classes": len(prompts.classes),
            "templates": list(prompts.templates),
        }
    null = NullDistribution(fitted.pictures, fitted.captions)
    document["independent"] = {
        **asdict(_fitted_curve(null, labels[0])),
        "pictures_fitted": len(fitted.captions),
        **_false_alarms(null, labels[1], measured),
    }
    return Calibration(document, null)


def _labels_of(encoder: Encoder, captions: Sequence[str], prompts: Prompts) -> Labels:
    """The classes; without any, some of the captions as labels."""
    if not prompts.classes:
        texts = sorted(set(captions))
        chosen = np.unique(np.linspace(0, len(texts) - 1, MOST_LABELS).astype(np.int64))
        prompts = Prompts(tuple(ClassPrompt(texts[each], (texts[each],)) for each in chosen), ("{}",))
    classifier = build_classifier(encoder, prompts.classes, prompts.templates)
    return Labels([each.names for each in prompts.classes], classifier)


def _temperature(logit_scale: float, classifier: Array, fitted: Half, measured: Half) -> dict[str, Any]:
    """The calibrated factor, and how well probabilities agree with labels before and after."""
    (cosines, labels), (other_cosines, other_labels) = (
        (similarities(half.pictures[half.labels >= 0], classifier), half.labels[half.labels >= 0])
        for half in (fitted, measured)
    )
    calibrated = fit_logit_scale(cosines, labels)
    return {
        "logit_scale": calibrated,
        "pictures_fitted": len(labels),
        "pictures_measured": len(other_labels),
        "before": asdict(measure_agreement(other_cosines, other_labels, logit_scale)),
        "after": asdict(measure_agreement(other_cosines, other_labels, calibrated)),
    }


def _fitted_curve(null: NullDistribution, labels: Labels) -> ProbabilityCurve:
    holds = _holding(null.captions, labels.names)
    if not holds.any():
        raise UserError("no picture shows one of the classes; calibrate with pictures of them")
    rates = IndependentLabels(null, labels.names, labels.classifier).judge(null.pictures).rates
    return fit_probability_curve(rates[holds], len(null.pictures))


def _false_alarms(null: NullDistribution, labels: Labels, measured: Half) -> dict[str, Any]:
    """How many of the measured pictures get a label that does not hold, and how many labels that hold are found."""
    judged = IndependentLabels(null, labels.names, labels.classifier).judge(measured.pictures)
    holds = _holding(measured.captions, labels.names)
    rate = max(FALSE_ALARM_RATE, null.lowest_rate)
    given = judged.rates_of_list <= rate
    false_alarms = int(np.count_nonzero((given & ~holds).any(axis=1)))
    best_wrong = np.where(holds, -np.inf, judged.scores).max(axis=1)
    return {
        "labels": len(labels.names),
        "pictures_measured": len(given),
        "stated_rate": rate,
        "false_alarm_rate": false_alarms / len(given),
        "false_alarm_interval": list(_interval(false_alarms / len(given), len(given), len(null.pictures))),
        "labels_found": float(given[holds].mean()) if holds.any() else None,
        "none_of_these_roc_auc": _area(judged.scores.max(axis=1), best_wrong, np.any(holds, axis=1)),
    }


def _interval(share: float, measured: int, fitted: int) -> Interval:
    """The interval of a false-alarm rate whose threshold comes from one half and whose share comes from the other.

    Both vary. It is Wilson's for as many pictures as would vary by themselves as much as the two together.
    """
    pictures = measured * fitted / (measured + fitted)
    return wilson(share * pictures, pictures)


def _area(best: Array, best_wrong: Array, named: Array) -> float | None:
    """The area under the ROC curve of telling pictures whose label is in the list from those whose label is not.

    The same pictures are both: judged with all labels, and without those that hold.
    """
    named = named & np.isfinite(best_wrong)  # without a label that does not hold, nothing would be left to find
    if not named.any():
        return None
    scores = np.concatenate([best[named], best_wrong[named]])
    ranked = ranking(scores, np.arange(len(scores)) < len(scores) // 2)
    return float(roc_auc(ranked, np.ones((1, len(scores))))[0])


def _holding(captions: Sequence[str], names: Sequence[Sequence[str]]) -> Array:
    """bool[captions labels]: whether the caption names the label."""
    known = Captions(captions)
    return np.stack([known.that_name(each) for each in names], axis=1)


def _halves(encoder: Encoder, data: Sequence[Pictures], prompts: Prompts) -> tuple[Half, Half]:
    """Embed the pictures, and divide them at random into two halves, the same each time.

    Those with labels and those with captions are drawn and divided by themselves: a million captions displace no label.
    """
    parts = []
    for pictures in data:
        total = sum(len(each) for each in data if bool(each.labels) == bool(pictures.labels))
        most = -(-len(pictures) * min(total, MOST_PICTURES) // total)
        pictures = subset(pictures, np.unique(np.linspace(0, len(pictures) - 1, most).astype(np.int64)))
        embedded = embed(encoder, pictures)
        if pictures.labels:
            labels = label_numbers(pictures, prompts.class_names)[embedded.kept]
            captions = [", ".join(prompts.classes[each].names) for each in labels]
        else:
            labels = np.full(len(embedded.kept), -1)
            captions = [" ".join(pictures.captions[place]) for place in embedded.kept]
        parts.append((unit_norm(embedded.embeddings), labels, captions))
    embeddings, labels = (np.concatenate([part[number] for part in parts]) for number in (0, 1))
    captions = [caption for part in parts for caption in part[2]]
    order = np.random.default_rng(SEED).permutation(len(captions))
    labelled, captioned = order[labels[order] >= 0], order[labels[order] < 0]
    _refuse_few(len(captions), "picture")
    if any(pictures.labels for pictures in data):
        _refuse_few(len(labelled), "labelled picture")
    halves = [np.split(places, [len(places) // 2]) for places in (labelled, captioned)]
    fitted, measured = (
        Half(embeddings[part], labels[part], tuple(captions[place] for place in part))
        for part in map(np.concatenate, zip(*halves, strict=True))
    )
    return fitted, measured


def _refuse_few(number: int, noun: str) -> None:
    if number < FEWEST_PICTURES:
        raise UserError(
            f"{counted(number, noun)} {is_or_are(number)} too few to calibrate with; expected {FEWEST_PICTURES} or "
            f"more: one half is fitted, the other measured"
        )
