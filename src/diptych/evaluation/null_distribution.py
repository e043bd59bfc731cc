"""Judge each label by itself: how near is a picture to it, compared with pictures that do not show it?

Pictures with captions are a null distribution for any text: those whose captions do not name a label are unrelated to
it. If the pictures that are judged are like those, a label that does not hold is as near to them as to those.

Captions leave things out. Where pictures show a label that their captions do not name, fewer false alarms occur than
are stated, and fewer labels are found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diptych.errors import UserError
from diptych.evaluation.captions_that_name import Captions
from diptych.evaluation.similarity import Array, blocks, similarities
from diptych.terminal import counted

FEWEST_UNRELATED = 20
"""Unrelated pictures that a mean and a standard deviation need."""
MOST_STEPS = 100
TOLERANCE = 1e-9
"""Of the logistic curve's parameters."""


@dataclass(frozen=True)
class NullDistribution:
    """Pictures with captions that are like those to judge."""

    pictures: Array
    """f32[pictures dim], of unit norm."""
    captions: tuple[str, ...]
    """The caption of each picture; several are joined."""

    @property
    def lowest_rate(self) -> float:
        """The lowest false-alarm rate that so many pictures can state."""
        return 1 / (len(self.pictures) + 1)


@dataclass(frozen=True)
class Judgement:
    """How near pictures are to labels."""

    scores: Array
    """f64[pictures labels]: cosines, in standard deviations from the mean of the unrelated pictures, so that a label
    that is near to every picture does not win."""
    rates: Array
    """f64[pictures labels]: the false-alarm rate of each label: the share of unrelated pictures that are as near."""
    rates_of_list: Array
    """f64[pictures labels]: the share of pictures that get one or more labels of the list that do not hold, if all
    labels with this score or more are given. The longer the list, the higher it is."""


class IndependentLabels:
    """Labels that may hold or not, each by itself.

    names: the names of each label in captions. classifier: f32[labels dim], from `build_classifier`.

    Raises:
        UserError: nearly all captions name one of the labels, so nothing is known about pictures without it.
    """

    def __init__(self, null: NullDistribution, names: Sequence[Sequence[str]], classifier: Array):
        self._classifier = classifier
        num_labels, num_pictures = len(names), len(null.pictures)
        self._means, self._deviations = np.empty(num_labels), np.empty(num_labels)
        self._unrelated = np.empty((num_labels, num_pictures), np.float32)
        """The cosines of unrelated pictures to each label, lowest first; related ones are -inf."""
        self._num_unrelated = np.empty(num_labels)
        best_wrong = np.full(num_pictures, -np.inf)
        captions = Captions(null.captions)
        for labels in blocks(num_labels, num_pictures):
            cosines = similarities(classifier[labels], null.pictures)
            for label, row in zip(range(labels.start, labels.stop), cosines, strict=True):
                unrelated = ~captions.that_name(names[label])
                self._num_unrelated[label] = np.count_nonzero(unrelated)
                if self._num_unrelated[label] < FEWEST_UNRELATED:
                    raise UserError(
                        f"{np.count_nonzero(~unrelated):,} of {counted(len(row), 'caption')} that the model was "
                        f"calibrated with name {names[label][0]!r}; expected {FEWEST_UNRELATED} or more without it: "
                        "calibrate with more pictures, of other things too"
                    )
                self._means[label] = row[unrelated].mean(dtype=np.float64)
                self._deviations[label] = max(row[unrelated].std(dtype=np.float64), 1e-9)
                self._unrelated[label] = np.sort(np.where(unrelated, row, -np.inf))
                scores = (row - self._means[label]) / self._deviations[label]
                np.maximum(best_wrong, scores, out=best_wrong, where=unrelated)
        self._best_wrong = np.sort(best_wrong)
        """f64[pictures]: for each picture of the null distribution, its best score of a label that does not hold."""

    def judge(self, pictures: Array) -> Judgement:
        """Judge pictures f32[pictures dim], of unit norm."""
        cosines = similarities(pictures, self._classifier)
        scores = (cosines - self._means) / self._deviations
        as_near = np.stack([_as_high(*each) for each in zip(self._unrelated, cosines.T, strict=True)], axis=1)
        return Judgement(
            scores,
            (as_near + 1) / (self._num_unrelated + 1),
            (_as_high(self._best_wrong, scores) + 1) / (len(self._best_wrong) + 1),
        )


@dataclass(frozen=True)
class ProbabilityCurve:
    """False-alarm rate of a label → probability that it holds, if it holds for half of the pictures that are judged.

    Among labels that do not hold, rates are uniform; among those that hold, their density is taken for a power of the
    rate, as in the beta-uniform model (Pounds and Morris, 2003). So the log odds are linear in the logarithm.
    """

    slope: float
    offset: float

    def __call__(self, rates: Array) -> Array:
        return _logistic(self.offset - self.slope * np.log(rates))


def fit_probability_curve(holding: Array, num_unrelated: int) -> ProbabilityCurve:
    """Fit the curve to the false-alarm rates of labels that hold, against those of unrelated pictures.

    num_unrelated: of how many unrelated pictures the rates are; theirs are all multiples of 1 / (num_unrelated + 1).
    """
    unrelated = np.arange(1, num_unrelated + 1) / (num_unrelated + 1)
    slope, offset = fit_logistic(-np.log(holding), -np.log(unrelated))
    return ProbabilityCurve(slope, offset)


def fit_logistic(positive: Array, negative: Array) -> tuple[float, float]:
    """Slope and offset of the logistic curve that tells two sets of numbers apart, each with half of all weight.

    The targets are a little inside 0 and 1, as in Platt (1999), so that the curve stays finite if a threshold separates
    the two. Newton's method, with shorter steps where a whole one would not improve the fit.
    """
    sizes = len(positive), len(negative)
    columns = np.stack([np.concatenate([positive, negative]), np.ones(sum(sizes))], axis=1)
    targets = np.repeat([(sizes[0] + 1) / (sizes[0] + 2), 1 / (sizes[1] + 2)], sizes)
    weights = np.repeat([0.5 / sizes[0], 0.5 / sizes[1]], sizes)

    def loss(parameters: Array) -> float:
        logits = columns @ parameters
        return float(weights @ (np.logaddexp(0, logits) - targets * logits))

    parameters = np.zeros(2)
    for _ in range(MOST_STEPS):
        probabilities = _logistic(columns @ parameters)
        gradient = columns.T @ (weights * (probabilities - targets))
        curvature = columns.T @ (columns * (weights * probabilities * (1 - probabilities))[:, None])
        step = np.linalg.lstsq(curvature, gradient, rcond=None)[0]
        while np.abs(step).max() > TOLERANCE and loss(parameters - step) > loss(parameters):
            step = step / 2
        parameters = parameters - step
        if np.abs(step).max() <= TOLERANCE:
            break
    return float(parameters[0]), float(parameters[1])


def _logistic(logits: Array) -> Array:
    return np.exp(-np.logaddexp(0, -logits))


def _as_high(ordered: Array, values: Array) -> Array:
    """How many of the ordered numbers are as high as each value or higher."""
    return len(ordered) - np.searchsorted(ordered, values, side="left")
