"""Compare two models on the same pictures: the difference, its interval, and the probability of one as large by luck.

Both models answer the same pictures, so their errors come together. A paired test sees much smaller differences than
two intervals side by side, which may overlap although one model is better.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from diptych.evaluation.intervals import NORMAL_QUANTILE, RESAMPLES, Interval, bootstrap_values, percentiles
from diptych.evaluation.similarity import Array


@dataclass(frozen=True)
class Difference:
    """The number of the second model minus that of the first."""

    value: float
    interval: Interval
    p_value: float
    """Probability of a difference at least as large, in either direction, if the models were equally good."""
    test: str


def mcnemar(first: Array, second: Array) -> Difference:
    """Compare the shares of right answers, bool[pictures] each, by McNemar's exact test.

    The interval is that of Bonett and Price (2012), which is never empty.
    """
    total = len(first)
    gained, lost = int(np.count_nonzero(~first & second)), int(np.count_nonzero(first & ~second))
    value = (gained - lost) / total
    gain, loss = (gained + 1) / (total + 2), (lost + 1) / (total + 2)
    half = NORMAL_QUANTILE * math.sqrt((gain + loss - (gain - loss) ** 2) / (total + 2))
    interval = max(-1.0, gain - loss - half), min(1.0, gain - loss + half)
    return Difference(value, interval, _two_sided_binomial(min(gained, lost), gained + lost), "McNemar, exact")


def paired_bootstrap(
    first: Callable[[Array], Array], second: Callable[[Array], Array], pictures: int, resamples: int = RESAMPLES
) -> Difference:
    """Compare two values of one statistic, each as `bootstrap` takes it, on the same resamples of the pictures."""
    whole = np.ones((1, pictures), dtype=np.int64)
    drawn = bootstrap_values(lambda counts: second(counts) - first(counts), pictures, resamples)
    drawn = drawn[~np.isnan(drawn)]
    as_low, as_high = (1 + np.count_nonzero(side) for side in (drawn <= 0, drawn >= 0))
    p_value = min(1.0, 2 * min(as_low, as_high) / (1 + len(drawn)))
    return Difference(float((second(whole) - first(whole))[0]), percentiles(drawn), p_value, "paired bootstrap")


def _two_sided_binomial(fewer: int, trials: int) -> float:
    """The probability that one of two equally likely outcomes occurs at most `fewer` times, times two."""
    half = math.log(0.5)
    logs = [
        math.lgamma(trials + 1) - math.lgamma(hits + 1) - math.lgamma(trials - hits + 1) + trials * half
        for hits in range(fewer + 1)
    ]
    return min(1.0, 2 * math.fsum(math.exp(each) for each in logs))
