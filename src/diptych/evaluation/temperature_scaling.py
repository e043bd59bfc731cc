"""Fit the temperature of the softmax so that probabilities agree with labels (Guo et al. 2017, section 4.2).

A model learns its temperature on captions of a batch; among a user's labels another one fits. It changes no answer,
only how sure of it the model claims to be.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diptych.evaluation.reliability import ReliabilityBin, expected_calibration_error, reliability_diagram
from diptych.evaluation.similarity import Array, blocks, softmax

LOGIT_SCALES = (0.1, 1000.0)
"""Range of the search. For a model that is right on every picture, the likelihood grows with the factor for ever."""
HALVINGS = 32
"""Of the range's logarithm, which leave nine digits."""


@dataclass(frozen=True)
class Agreement:
    """How well probabilities agree with the labels of pictures."""

    logit_scale: float
    """The factor on cosines before the softmax: 1 / temperature."""
    nll: float
    """Mean negative log likelihood of the labels, in nats."""
    ece: float
    """Expected calibration error."""
    bins: tuple[ReliabilityBin, ...]


def fit_logit_scale(cosines: Array, labels: Array) -> float:
    """The factor on cosines that gives the labels the lowest negative log likelihood.

    cosines: f32[pictures classes]. labels: i64[pictures].
    """
    low, high = map(np.log, LOGIT_SCALES)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if _slope(cosines, labels, float(np.exp(middle))) < 0:
            low = middle
        else:
            high = middle
    return float(np.exp((low + high) / 2))


def measure_agreement(cosines: Array, labels: Array, logit_scale: float) -> Agreement:
    """How well the softmax of logit_scale · cosines agrees with the labels."""
    confidences, right, likelihoods = [], [], []
    for rows in blocks(*cosines.shape):
        probabilities = softmax(logit_scale * cosines[rows].astype(np.float64))
        confidences.append(probabilities.max(axis=1))
        right.append(probabilities.argmax(axis=1) == labels[rows])
        likelihoods.append(probabilities[np.arange(len(probabilities)), labels[rows]])
    bins = reliability_diagram(np.concatenate(confidences), np.concatenate(right))
    # A probability that float64 rounds to 0 counts as its smallest number: the mean stays finite.
    smallest = np.finfo(np.float64).tiny
    nll = -float(np.log(np.maximum(np.concatenate(likelihoods), smallest)).mean())
    return Agreement(logit_scale, nll, expected_calibration_error(bins), tuple(bins))


def _slope(cosines: Array, labels: Array, logit_scale: float) -> float:
    """The derivative of the negative log likelihood, which is convex, by the factor."""
    slope = 0.0
    for rows in blocks(*cosines.shape):
        part = cosines[rows].astype(np.float64)
        expected = (softmax(logit_scale * part) * part).sum(axis=1)
        slope += float((expected - part[np.arange(len(part)), labels[rows]]).sum())
    return slope
