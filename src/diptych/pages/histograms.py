"""Count whole numbers and draw them as bars: sides of pictures, lengths of captions, ratios of width to height."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from diptych.pages.charts import BarChart, bar_chart
from diptych.pages.template import percent

RATIO_STEPS = 60
"""Steps for each doubling in which aspect ratios are counted."""
MOST_DOUBLINGS = 8

_PER_DOUBLING = 4
_MOST_BARS = 40


class Tally:
    """How often each whole number was seen; numbers above `largest` count as `largest`."""

    def __init__(self, largest: int):
        self.counts = np.zeros(largest + 1, np.int64)

    def add(self, values: np.ndarray) -> None:
        self.counts += np.bincount(np.clip(values, 0, len(self.counts) - 1), minlength=len(self.counts))

    @property
    def total(self) -> int:
        return int(self.counts.sum())

    @property
    def num_different(self) -> int:
        return int(np.count_nonzero(self.counts))

    def quantile(self, share: float) -> int:
        """The smallest number that at least this share of all numbers does not exceed."""
        return int(np.searchsorted(np.cumsum(self.counts), max(share * self.total, 1)))

    def add_counts(self, counts: Mapping[str, int]) -> None:
        """counts: as `nonzero` gave them."""
        for number, times in counts.items():
            self.counts[int(number)] += times

    @property
    def nonzero(self) -> dict[str, int]:
        """How often each number that occurs was seen, as JSON can hold it."""
        return {str(number): int(self.counts[number]) for number in np.flatnonzero(self.counts)}


def side_histogram(title: str, tally: Tally) -> BarChart | None:
    """Draw numbers above 0 on an axis that doubles from mark to mark; None for an empty tally."""
    if not tally.total:
        return None
    seen = np.flatnonzero(tally.counts)
    lowest, highest = max(int(seen[0]), 1), int(seen[-1])
    # At least two doublings, so that pictures of one size are a bar and not a wall.
    first = min(math.floor(math.log2(lowest) * _PER_DOUBLING), math.ceil(math.log2(highest) * _PER_DOUBLING) - 5)
    first = max(first, 0)
    last = max(math.floor(math.log2(highest) * _PER_DOUBLING) + 1, first + 2 * _PER_DOUBLING)
    edges = [math.ceil(2 ** (step / _PER_DOUBLING) - 1e-9) for step in range(first, last + 1)]
    steps = list(zip(edges, edges[1:], strict=False))

    def place(value: float) -> float:
        return math.log2(max(value, 1)) * _PER_DOUBLING - first

    return bar_chart(
        title,
        [int(tally.counts[low:high].sum()) for low, high in steps],
        [_between(low, high, "pixels") for low, high in steps],
        about=_spread(tally, "pixels"),
        x_ticks=[(place(2**power), f"{2**power:,}") for power in range(20) if first <= power * _PER_DOUBLING <= last],
        median=_median(tally, place),
    )


def length_histogram(title: str, unit: str, tally: Tally) -> BarChart | None:
    """Draw numbers from 0 up, evenly spaced; the last bar holds the longest two in a hundred."""
    if not tally.total:
        return None
    step = _round_step(max(tally.quantile(0.98), 4) / _MOST_BARS)
    num_bars = max(tally.quantile(0.98), 4) // step + 1
    edges = [step * number for number in range(num_bars)]
    counts = [int(tally.counts[low : low + step].sum()) for low in edges]
    labels = [_between(low, low + step, unit) for low in edges]
    if rest := int(tally.counts[num_bars * step :].sum()):
        counts.append(rest)
        labels.append(f"{num_bars * step:,} {unit} or more")

    def place(value: float) -> float:
        return min((value + (0.5 if step == 1 else 0)) / step, len(counts) - 0.5)

    every = _round_step(num_bars * step / 6)
    return bar_chart(
        title,
        counts,
        labels,
        about=_spread(tally, unit),
        x_ticks=[(place(value), f"{value:,}") for value in range(0, num_bars * step, every)],
        median=_median(tally, place),
    )


def ratio_histogram(title: str, tally: Tally) -> BarChart | None:
    """Draw log2 of width to height, with 1:1 in the middle."""
    if not tally.total:
        return None
    seen = (np.flatnonzero(tally.counts) / RATIO_STEPS) - MOST_DOUBLINGS
    reach = min(max(1.0, math.ceil(2 * max(abs(seen[0]), abs(seen[-1]))) / 2), MOST_DOUBLINGS)
    num_bars = 2 * round(reach * 6) + 1
    steps = np.arange(len(tally.counts)) / RATIO_STEPS - MOST_DOUBLINGS
    half = reach * (1 + 1 / (num_bars - 1))
    counts, edges = np.histogram(steps, num_bars, (-half, half), weights=tally.counts)
    wide, tall = (int(tally.counts[steps > 0.01].sum()), int(tally.counts[steps < -0.01].sum()))
    marks = ((-3, "1:8"), (-2, "1:4"), (-1, "1:2"), (0, "1:1"), (1, "2:1"), (2, "4:1"), (3, "8:1"))
    return bar_chart(
        title,
        [int(count) for count in counts],
        [f"{_ratio(low)} to {_ratio(high)}" for low, high in zip(edges, edges[1:], strict=False)],
        about=f"{percent(wide, tally.total)} wide, {percent(tall, tally.total)} tall",
        x_ticks=[((at + half) / (2 * half) * num_bars, label) for at, label in marks if abs(at) <= reach],
    )


def _between(low: int, high: int, unit: str) -> str:
    return f"{low:,} {unit}" if high <= low + 1 else f"{low:,} to {high - 1:,} {unit}"


def _median(tally: Tally, place: Callable[[float], float]) -> tuple[float, str]:
    median = tally.quantile(0.5)
    return place(median), f"median {median:,}"


def _round_step(least: float) -> int:
    """1, 2 or 5 times a power of ten, not below `least`."""
    power = 10 ** max(math.floor(math.log10(max(least, 1))), 0)
    return next(int(factor * power) for factor in (1, 2, 5, 10) if factor * power >= least)


def _spread(tally: Tally, unit: str) -> str:
    low, high = tally.quantile(0.05), tally.quantile(0.95)
    return f"90\u202f% between {low:,} and {high:,} {unit}" if low != high else f"{low:,} {unit}"


def _ratio(doublings: float) -> str:
    return f"{2**doublings:.2f}:1" if doublings >= 0 else f"1:{2**-doublings:.2f}"
