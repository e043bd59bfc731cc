"""Intervals that say how far a measured number may be from that of all pictures of the same kind.

They are 95 % intervals over the choice of pictures: the model, the classes and the gallery of a retrieval are fixed. A
share of independent answers has Wilson's score interval (1927), which stays inside 0 and 1 and is never empty. Every
other number has a percentile bootstrap over the pictures, with a fixed seed, so that it is the same each time; at 0 and
1 that would be empty, and is Wilson's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from diptych.evaluation.similarity import Array

CONFIDENCE = 0.95
NORMAL_QUANTILE = 1.959963984540054
"""Of the normal distribution at (1 + CONFIDENCE) / 2."""
RESAMPLES = 1_000
RESAMPLES_AT_ONCE = 50
SEED = 0

Interval = tuple[float, float]


class Measured(NamedTuple):
    """A number and its interval."""

    value: float
    interval: Interval


def as_result(measured: Mapping[str, Measured | None]) -> dict[str, Any]:
    """The `metrics` and `intervals` of an evaluator's result; a number that means nothing is None in both."""
    return {
        "metrics": {name: each.value if each else None for name, each in measured.items()},
        "intervals": {name: list(each.interval) if each else None for name, each in measured.items()},
    }


def share_of(right: Array) -> Measured:
    """The share of right answers, bool[pictures]."""
    hits = int(np.count_nonzero(right))
    return Measured(hits / len(right), wilson(hits, len(right)))


def per_class_share(right: Array, labels: Array) -> Measured:
    """The mean of the shares of right answers, bool[pictures], over the classes that occur in i64[pictures]."""
    totals = np.bincount(labels)
    hits = np.bincount(labels[right], minlength=len(totals))
    hits, totals = hits[totals > 0], totals[totals > 0]
    return Measured(float((hits / totals).mean()), per_class_interval(hits, totals))


def wilson(hits: float, total: float) -> Interval:
    """The interval of the share `hits / total` of independent answers; (0, 1) if there are none."""
    if total <= 0:
        return 0.0, 1.0
    share, square = hits / total, NORMAL_QUANTILE**2
    centre = (share + square / (2 * total)) / (1 + square / total)
    half = math.sqrt(share * (1 - share) / total + square / (4 * total**2)) * NORMAL_QUANTILE / (1 + square / total)
    return (0.0 if hits == 0 else max(0.0, centre - half)), (1.0 if hits == total else min(1.0, centre + half))


def bootstrap(statistic: Callable[[Array], Array], pictures: int, resamples: int = RESAMPLES) -> Measured:
    """A statistic of all pictures, and its interval under resampling of the pictures.

    statistic: i64[resamples pictures], how often each resample draws each picture → f64[resamples]; NaN where the
        resample does not define it, such as one without any picture of a class.
    """
    value = float(statistic(np.ones((1, pictures), dtype=np.int64))[0])
    values = bootstrap_values(statistic, pictures, resamples)
    # Average precision of a resample is too high on average, since a picture drawn twice is found twice.
    low, high = percentiles(values - np.nanmean(values) + value)
    return Measured(value, (low, high))


def bootstrapped_share(statistic: Callable[[Array], Array], pictures: int, resamples: int = RESAMPLES) -> Measured:
    """As `bootstrap`, for a statistic from 0 to 1; at 0 and 1, where no resample differs, the interval is Wilson's."""
    value, (low, high) = bootstrap(statistic, pictures, resamples)
    if value in (0, 1):
        return Measured(value, wilson(value * pictures, pictures))
    return Measured(value, (max(0.0, low), min(1.0, high)))


def bootstrap_values(statistic: Callable[[Array], Array], pictures: int, resamples: int = RESAMPLES) -> Array:
    """f64[resamples]: the statistic of each resample; the draws depend only on the two numbers."""
    random = np.random.default_rng(SEED)
    values = []
    for start in range(0, resamples, RESAMPLES_AT_ONCE):
        rows = min(RESAMPLES_AT_ONCE, resamples - start)
        drawn = random.integers(pictures, size=(rows, pictures)) + pictures * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * pictures).reshape(rows, pictures)
        values.append(np.asarray(statistic(counts), dtype=np.float64))
    return np.concatenate(values)


def grouped_share(right: Array, group: Array) -> Measured:
    """The share of right answers, bool[answers], that come in groups such as the captions of one picture.

    group: i64[answers]. The answers of a group are resampled together: they are not independent.
    """
    totals = np.bincount(group)
    hits = np.bincount(group[right], minlength=len(totals))
    hits, totals = hits[totals > 0], totals[totals > 0]
    if (totals == 1).all():
        return Measured(float(hits.mean()), wilson(int(hits.sum()), len(totals)))
    if len(totals) == 1:  # as good as one answer
        return Measured(float(hits[0] / totals[0]), (0.0, 1.0))
    return bootstrapped_share(lambda counts: (counts @ hits) / (counts @ totals), len(totals))


def per_class_interval(hits: Array, totals: Array) -> Interval:
    """The interval of the mean of the classes' shares `hits / totals`, for classes that have pictures.

    It is Wilson's, for as many pictures in equal classes as would give the mean the same variance; for classes of one
    size that is the number of pictures. In simulations it covers 94-97 % also with few pictures in a class, where
    a bootstrap within classes covers 71-95 %.
    """
    pictures = equal_pictures(totals)
    return wilson(float((hits / totals).mean()) * pictures, pictures)


def equal_pictures(totals: Array) -> float:
    """How many pictures in equal classes give a mean over classes the variance that these numbers of pictures do."""
    return len(totals) ** 2 / float((1 / totals).sum())


def percentiles(values: Array) -> Interval:
    """The range of the middle 95 % of the values, leaving out NaN; (0, 1) if there is no value."""
    known = values[~np.isnan(values)]
    if not len(known):
        return 0.0, 1.0
    low, high = np.quantile(known, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)
