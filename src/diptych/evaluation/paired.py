"""Compare two models on the same pictures: the difference, its interval, and the probability of one as large by luck.

Both models answer the same pictures, so their errors come together. A paired test sees much smaller differences than
two intervals side by side, which may overlap although one model is better.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from diptych.evaluation.intervals import (
    NORMAL_QUANTILE,
    RESAMPLES,
    SEED,
    Interval,
    bootstrap_values,
    equal_pictures,
    percentiles,
)
from diptych.evaluation.similarity import Array

EXCHANGES = 5_000


@dataclass(frozen=True)
class Difference:
    """The number of the second model minus that of the first."""

    value: float
    interval: Interval
    p_value: float
    """Probability of a difference at least as large, in either direction, if the models were equally good."""
    test: str


def mcnemar(first: Array, second: Array) -> Difference:
    """Compare the shares of right answers, bool[pictures] each, by McNemar's exact test."""
    total = len(first)
    gained, lost = int(np.count_nonzero(~first & second)), int(np.count_nonzero(first & ~second))
    p_value = _two_sided_binomial(min(gained, lost), gained + lost)
    return Difference((gained - lost) / total, bonett_price(gained, lost, total), p_value, "McNemar, exact")


def bonett_price(gained: float, lost: float, total: float) -> Interval:
    """The interval of the difference of two shares of the same pictures (Bonett and Price 2012), which is never empty.

    gained, lost: how many of the pictures only the second model is right about, and only the first.
    """
    gain, loss = (gained + 1) / (total + 2), (lost + 1) / (total + 2)
    half = NORMAL_QUANTILE * math.sqrt((gain + loss - (gain - loss) ** 2) / (total + 2))
    return max(-1.0, gain - loss - half), min(1.0, gain - loss + half)


def paired_per_class(first: Array, second: Array, labels: Array) -> Difference:
    """Compare the means of the classes' shares of right answers, bool[pictures] each, over the classes i64[pictures].

    The test exchanges at random the answers of the two models to a picture, which would change nothing if they were
    equally good. With classes of one size that is McNemar's test, and the interval is its interval too; in simulations
    with classes of other sizes, or of one to five pictures, it covers 96 to 100 %.
    """
    totals = np.bincount(labels)
    gained, lost = (np.bincount(labels[each], minlength=len(totals)) for each in (~first & second, first & ~second))
    gained, lost, totals = (each[totals > 0] for each in (gained, lost, totals))
    gain, loss, pictures = (gained / totals).mean(), (lost / totals).mean(), equal_pictures(totals)

    differing = gained + lost
    changes = 2 * np.random.default_rng(SEED).binomial(differing, 0.5, (EXCHANGES, len(totals))) - differing
    as_large = np.count_nonzero(np.abs((changes / totals).mean(axis=1)) >= abs(gain - loss) - 1e-9)
    p_value = (1 + as_large) / (1 + EXCHANGES)
    interval = bonett_price(gain * pictures, loss * pictures, pictures)
    return Difference(float(gain - loss), interval, p_value, "random exchanges")


def paired_bootstrap(
    first: Callable[[Array], Array], second: Callable[[Array], Array], pictures: int, resamples: int = RESAMPLES
) -> Difference:
    """Compare two values of one statistic, each as `bootstrap` takes it, on the same resamples of the pictures.

    If no resample differs from another, the interval is that of two shares of which no answer differs.
    """
    whole = np.ones((1, pictures), dtype=np.int64)
    drawn = bootstrap_values(lambda counts: second(counts) - first(counts), pictures, resamples)
    drawn = drawn[~np.isnan(drawn)]
    as_low, as_high = (1 + np.count_nonzero(side) for side in (drawn <= 0, drawn >= 0))
    p_value = min(1.0, 2 * min(as_low, as_high) / (1 + len(drawn)))
    value, (low, high) = float((second(whole) - first(whole))[0]), percentiles(drawn)
    interval = (low, high) if low < high else bonett_price(0, 0, pictures)
    return Difference(value, interval, p_value, "paired bootstrap")


def _two_sided_binomial(fewer: int, trials: int) -> float:
    """The probability that one of two equally likely outcomes occurs at most `fewer` times, times two."""
    half = math.log(0.5)
    logs = [
        math.lgamma(trials + 1) - math.lgamma(hits + 1) - math.lgamma(trials - hits + 1) + trials * half
        for hits in range(fewer + 1)
    ]
    return min(1.0, 2 * math.fsum(math.exp(each) for each in logs))
