"""Measures of how well scores rank pictures that have a label above those that do not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from diptych.evaluation.intervals import RESAMPLES, Measured, bootstrapped_share
from diptych.evaluation.similarity import Array

RECALL_LEVELS = np.linspace(0, 1, 11)
MOST_WORK = 200_000_000
"""resamples x labels x pictures: 2e8 take 6 to 10 s on one core; large data have fewer resamples."""
FEWEST_RESAMPLES = 200


@dataclass(frozen=True)
class Ranking:
    """The pictures of a data set from the highest score to the lowest, for one label.

    Equal scores form one step: a picture in the middle of a tie is neither before nor after the others. So a model with
    constant output gets the share of pictures that have the label as average precision, and 0.5 as area.
    """

    order: Array
    """i64[pictures]: the places of the pictures, highest score first."""
    ends: Array
    """i64[steps]: the last place in `order` of each step of equal scores."""
    has_label: Array
    """bool[pictures], in the order of the pictures."""


def ranking(scores: Array, has_label: Array) -> Ranking:
    """Rank pictures by f32[pictures]; NaN comes last."""
    scores = np.where(np.isnan(scores), -np.inf, scores)
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    ends = np.append(np.flatnonzero(ordered[1:] != ordered[:-1]), len(scores) - 1)
    return Ranking(order, ends, np.asarray(has_label, dtype=bool))


def steps_of(ranked: Ranking) -> Array:
    """i64[pictures]: the number of the step that each picture is in, 0 for the highest; `ranking(-steps)` is equal."""
    steps = np.empty(len(ranked.order), dtype=np.int64)
    steps[ranked.order] = np.repeat(np.arange(len(ranked.ends)), np.diff(ranked.ends, prepend=-1))
    return steps


def average_precision(ranked: Ranking, counts: Array) -> Array:
    """f64[resamples]: the mean over all pictures with the label of the precision down to them.

    counts: [resamples pictures], how often each picture occurs in each resample; ones for the data set itself. The
        result is NaN where no picture has the label.
    """
    right, precision = _steps(ranked, counts)
    gained = np.diff(right, axis=1, prepend=0)
    return _divided((gained * precision).sum(axis=1), right[:, -1])


def eleven_point_precision(ranked: Ranking, counts: Array) -> Array:
    """f64[resamples]: VOC 2007's average precision: the mean over recall 0, 0.1 ... 1 of the best precision there.

    The best precision at a recall is the highest that is reached with this recall or more.
    """
    right, precision = _steps(ranked, counts)
    best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    wanted = RECALL_LEVELS[None, :] * right[:, -1:]
    # A recall of 0.3 is reached by 3 of 10, although 0.3 * 10 is a little more than 3.
    first = (right[:, :, None] < wanted[:, None, :] - 1e-9).sum(axis=1)
    values = np.take_along_axis(best, np.minimum(first, best.shape[1] - 1), axis=1).mean(axis=1)
    return np.where(right[:, -1] > 0, values, np.nan)


def roc_auc(ranked: Ranking, counts: Array) -> Array:
    """f64[resamples]: the probability that a picture with the label has a higher score than one without it.

    A tie counts as half. NaN where all or no pictures have the label.
    """
    ordered = counts[:, ranked.order]
    labelled = ranked.has_label[ranked.order]
    right = np.cumsum(ordered * labelled, axis=1)[:, ranked.ends]
    wrong = np.cumsum(ordered * ~labelled, axis=1)[:, ranked.ends]
    more_wrong = np.diff(wrong, axis=1, prepend=0)
    above = (right - np.diff(right, axis=1, prepend=0) / 2) * more_wrong
    return _divided(above.sum(axis=1), right[:, -1] * wrong[:, -1])


def measured_by(measure: Callable[[Ranking, Array], Array], ranked: Sequence[Ranking]) -> Measured | None:
    """The mean of a measure over the rankings by several labels, of the same pictures; None if it is never defined.

    Labels for which it is not defined, such as those that no picture has, are left out of the mean.
    """

    pictures = len(ranked[0].order)
    whole = np.ones((1, pictures), dtype=np.int64)
    defined = [each for each in ranked if not np.isnan(measure(each, whole)[0])]
    if not defined:
        return None
    resamples = resamples_of(len(defined), pictures)
    return bootstrapped_share(mean_of(measure, defined), pictures, resamples)


def mean_of(measure: Callable[[Ranking, Array], Array], ranked: Sequence[Ranking]) -> Callable[[Array], Array]:
    """The mean of a measure over rankings, where it is defined, as `bootstrap` takes it."""

    def mean(counts: Array) -> Array:
        values = np.stack([measure(each, counts) for each in ranked])
        known = ~np.isnan(values)
        return _divided(np.where(known, values, 0).sum(axis=0), known.sum(axis=0))

    return mean


def resamples_of(labels: int, pictures: int) -> int:
    """How many resamples can be measured in seconds."""
    return max(FEWEST_RESAMPLES, min(RESAMPLES, MOST_WORK // (labels * pictures)))


def _steps(ranked: Ranking, counts: Array) -> tuple[Array, Array]:
    """The number of pictures with the label down to the end of each step, and their share of all down to there."""
    ordered = counts[:, ranked.order]
    right = np.cumsum(ordered * ranked.has_label[ranked.order], axis=1)[:, ranked.ends]
    everything = np.cumsum(ordered, axis=1)[:, ranked.ends]
    return right, right / np.maximum(everything, 1)


def _divided(parts: Array, wholes: Array) -> Array:
    return np.where(wholes > 0, parts / np.where(wholes > 0, wholes, 1), np.nan)
