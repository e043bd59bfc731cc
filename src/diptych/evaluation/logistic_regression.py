"""Fit a logistic regression as the paper does (appendix A.3), with scikit-learn's L-BFGS.

The paper's λ runs from 1e-6 to 1e6 in 96 logarithmic steps, eighths of a decade. Here it weighs the L2 penalty against
the sum of the losses, so scikit-learn's C is 1 / λ and runs over the same values. The paper does not say whether it
means the sum or the mean; C = 0.316 of OpenAI's example is one of these values. Against the mean of the losses of n
pictures, C would be 1 / (n λ).

The fits of the search do not start from one another's weights: with scikit-learn's tolerance a fit that starts near its
optimum stops at once, so the order of the search would decide its result.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from diptych.evaluation.similarity import Array

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

MOST_ITERATIONS = 1_000
STEPS_PER_DECADE = 8
GRID = tuple(10.0 ** (step / STEPS_PER_DECADE) for step in range(-6 * STEPS_PER_DECADE, 6 * STEPS_PER_DECADE + 1))
"""The values of C among which the search chooses."""
FIRST_STEP = 2 * STEPS_PER_DECADE
"""Places of GRID between the first values of the search: 1e-6, 1e-4, … 1e6."""

Score = tuple[float, float]
"""Accuracy, and to choose between equally accurate fits, the mean logarithm of the probability of the true class."""


@dataclass(frozen=True)
class Fitted:
    """A logistic regression and the normalisation of its features."""

    model: LogisticRegression
    centre: Array
    scale: float

    @property
    def iterations(self) -> int:
        return int(np.max(self.model.n_iter_))

    def predict(self, features: Array) -> Array:
        """The most probable class of each row of f32[pictures width]."""
        classes: Array = self.model.predict(self._normalised(features))
        return classes

    def score(self, features: Array, labels: Array) -> Score:
        """The score on f32[pictures width], with labels that are all among the classes of the fit."""
        logits = self.model.decision_function(self._normalised(features))
        if logits.ndim == 1:  # of two classes, scikit-learn gives only the second's
            logits = np.stack([np.zeros_like(logits), logits], axis=1)
        true = np.searchsorted(self.model.classes_, labels)
        logs = logits[np.arange(len(true)), true] - np.logaddexp.reduce(logits, axis=1)
        return float((logits.argmax(axis=1) == true).mean()), float(logs.mean())

    def _normalised(self, features: Array) -> Array:
        return (features - self.centre) / self.scale


def fit(features: Array, labels: Array, inverse_penalty: float, most_iterations: int = MOST_ITERATIONS) -> Fitted:
    """Fit f32[pictures width] with a given C.

    The features are centred and divided by one number, with which L-BFGS needs fewer iterations; C is changed to match,
    so that the optimum is that of the features as they are.
    """
    # Imported here: scikit-learn takes a second to load, which would slow down every other verb.
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    centre, scale = features.mean(axis=0), float(features.std()) or 1.0
    model = LogisticRegression(C=inverse_penalty * scale**2, max_iter=most_iterations)
    with warnings.catch_warnings():
        # Not converging is recorded in the result, and is expected during a search of few iterations.
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)  # with one picture of each
        return Fitted(model.fit((features - centre) / scale, labels), centre, scale)


def best_inverse_penalty(
    features: Array, labels: Array, held_features: Array, held_labels: Array, most_iterations: int = MOST_ITERATIONS
) -> tuple[float, float]:
    """The C of GRID whose fit is best on held-out pictures, and its accuracy there."""
    with tqdm(desc="choosing the penalty", unit="fit", disable=None, leave=False) as progress:

        def score(place: int) -> Score:
            progress.update()
            return fit(features, labels, GRID[place], most_iterations).score(held_features, held_labels)

        place, (accuracy, _) = search(score)
    return GRID[place], accuracy


def search(score: Callable[[int], Score]) -> tuple[int, Score]:
    """The place in GRID with the best score, and that score.

    This is the paper's parametric binary search: first the values two decades apart, then those on both sides of the
    best at half the distance, until the distance is an eighth of a decade. That takes 15 of the 97 fits.
    """
    scores = {place: score(place) for place in range(0, len(GRID), FIRST_STEP)}
    step = FIRST_STEP
    while step > 1:
        step //= 2
        best = max(scores, key=lambda place: scores[place])
        for place in (best - step, best + step):
            if 0 <= place < len(GRID):
                scores[place] = score(place)
    best = max(scores, key=lambda place: scores[place])
    return best, scores[best]
