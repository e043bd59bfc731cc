"""Measure whether probabilities can be believed: of the pictures with 80 % confidence, 80 % should be right.

Terms and formulas are those of Guo et al., "On Calibration of Modern Neural Networks" (2017).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diptych.evaluation.similarity import Array

NUM_BINS = 15
"""Bins of a reliability diagram, of equal width, as in the paper."""


@dataclass(frozen=True)
class ReliabilityBin:
    """The pictures whose confidence is above `low` and at most `high`."""

    low: float
    high: float
    pictures: int
    confidence: float
    """Their mean confidence, the probability of the answer that was given."""
    accuracy: float
    """The share of them with a right answer."""


def reliability_diagram(confidences: Array, right: Array, num_bins: int = NUM_BINS) -> list[ReliabilityBin]:
    """The bins that contain pictures, lowest confidence first.

    confidences: f64[pictures], from 0 to 1.
    right: bool[pictures], whether the answer was right.
    """
    numbers = np.clip(np.ceil(confidences * num_bins).astype(np.int64) - 1, 0, num_bins - 1)
    return [
        ReliabilityBin(
            each / num_bins,
            (each + 1) / num_bins,
            int(np.count_nonzero(numbers == each)),
            float(confidences[numbers == each].mean()),
            float(right[numbers == each].mean()),
        )
        for each in np.unique(numbers).tolist()
    ]


def expected_calibration_error(bins: list[ReliabilityBin]) -> float:
    """The mean over pictures of the difference between confidence and accuracy of their bin (equation 3)."""
    total = sum(each.pictures for each in bins)
    return sum(each.pictures * abs(each.confidence - each.accuracy) for each in bins) / total
