"""Histograms: counts of whole numbers, drawn as bars."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diptych.pages.charts import short_number, ticks
from diptych_shards.report.gather import MOST_DOUBLINGS, RATIO_STEPS
from diptych_shards.report.tally import Tally

WIDTH, HEIGHT = 420, 190
LEFT, RIGHT, TOP, BOTTOM = 44, 6, 30, 26
_GAP = 1.5
_PER_DOUBLING = 4
_MOST_BARS = 40


@dataclass(frozen=True)
class Bar:
    x: float
    y: float
    width: float
    height: float
    title: str


@dataclass(frozen=True)
class Histogram:
    """A chart in the units of its SVG."""

    title: str
    about: str
    bars: Sequence[Bar]
    marks: Sequence[tuple[float, str]]
    """(x, label) under the axis."""
    median: tuple[float, str] | None
    heights: Sequence[tuple[float, str]]
    """(y, how many) left of the bars."""
    left: float = LEFT
    base: float = HEIGHT - BOTTOM
    top: float = TOP
    width: float = WIDTH
    height: float = HEIGHT


def side_histogram(title: str, tally: Tally) -> Histogram | None:
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
    scale = _Scale(len(steps))

    def x(value: float) -> float:
        return scale.x(math.log2(max(value, 1)) * _PER_DOUBLING - first)

    counts = [int(tally.counts[low:high].sum()) for low, high in steps]
    bars = scale.bars(counts, [_between(low, high, "pixels") for low, high in steps], tally.total)
    marks = [(x(2**power), f"{2**power:,}") for power in range(20) if first <= power * _PER_DOUBLING <= last]
    return Histogram(
        title,
        _spread(tally, "pixels"),
        bars,
        _spaced(marks),
        _median(tally, x(tally.quantile(0.5))),
        scale.heights(counts),
    )


def length_histogram(title: str, unit: str, tally: Tally) -> Histogram | None:
    """Draw numbers from 0 up, evenly spaced; the last bar holds the longest two in a hundred."""
    if not tally.total:
        return None
    step = _round_step(max(tally.quantile(0.98), 4) / _MOST_BARS)
    num_bars = max(tally.quantile(0.98), 4) // step + 1
    edges = [step * number for number in range(num_bars)]
    counts = [int(tally.counts[low : low + step].sum()) for low in edges]
    titles = [_between(low, low + step, unit) for low in edges]
    if rest := int(tally.counts[num_bars * step :].sum()):
        counts.append(rest)
        titles.append(f"{num_bars * step:,} {unit} or more")
    scale = _Scale(len(counts))

    def x(value: float) -> float:
        return scale.x(min((value + (0.5 if step == 1 else 0)) / step, len(counts) - 0.5))

    every = _round_step(num_bars * step / 6)
    marks = [(x(value), f"{value:,}") for value in range(0, num_bars * step, every)]
    bars = scale.bars(counts, titles, tally.total)
    return Histogram(
        title, _spread(tally, unit), bars, _spaced(marks), _median(tally, x(tally.quantile(0.5))), scale.heights(counts)
    )


def ratio_histogram(title: str, tally: Tally) -> Histogram | None:
    """Draw log2 of width to height, with 1:1 in the middle."""
    if not tally.total:
        return None
    seen = (np.flatnonzero(tally.counts) / RATIO_STEPS) - MOST_DOUBLINGS
    reach = min(max(1.0, math.ceil(2 * max(abs(seen[0]), abs(seen[-1]))) / 2), MOST_DOUBLINGS)
    num_bars = 2 * round(reach * 6) + 1
    scale = _Scale(num_bars)
    steps = np.arange(len(tally.counts)) / RATIO_STEPS - MOST_DOUBLINGS
    half = reach * (1 + 1 / (num_bars - 1))
    counts, edges = np.histogram(steps, num_bars, (-half, half), weights=tally.counts)
    titles = [f"{_ratio(low)} to {_ratio(high)}" for low, high in zip(edges, edges[1:], strict=False)]
    bars = scale.bars([int(count) for count in counts], titles, tally.total)

    def x(doublings: float) -> float:
        return scale.x((doublings + half) / (2 * half) * num_bars)

    labels = ((-3, "1:8"), (-2, "1:4"), (-1, "1:2"), (0, "1:1"), (1, "2:1"), (2, "4:1"), (3, "8:1"))
    marks = [(x(doublings), label) for doublings, label in labels if abs(doublings) <= reach]
    wide, tall = (int(tally.counts[steps > 0.01].sum()), int(tally.counts[steps < -0.01].sum()))
    about = f"{100 * wide / tally.total:.0f} % wide, {100 * tall / tally.total:.0f} % tall"
    return Histogram(title, about, bars, _spaced(marks), None, scale.heights([int(count) for count in counts]))


class _Scale:
    """Computes the places of numbered bars in the drawing."""

    def __init__(self, num_bars: int):
        self._step = (WIDTH - LEFT - RIGHT) / num_bars

    def x(self, place: float) -> float:
        return round(LEFT + place * self._step, 1)

    def heights(self, counts: Sequence[int]) -> list[tuple[float, str]]:
        """Round numbers up to the highest bar, and where they are."""
        highest = max(counts)
        return [
            (round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * count / highest, 1), short_number(count))
            for count in ticks(0, highest, 3)
            if 0 < count == int(count)
        ]

    def bars(self, counts: Sequence[int], titles: Sequence[str], total: int) -> list[Bar]:
        highest = max(counts)
        drawn = []
        for number, (count, title) in enumerate(zip(counts, titles, strict=True)):
            if count:
                height = max((HEIGHT - TOP - BOTTOM) * count / highest, 1.0)
                top = round(HEIGHT - BOTTOM - height, 1)
                told = f"{title}: {count:,} ({100 * count / total:.1f} %)"
                drawn.append(Bar(self.x(number), top, round(max(self._step - _GAP, 1), 1), round(height, 1), told))
        return drawn


def _between(low: int, high: int, unit: str) -> str:
    return f"{low:,} {unit}" if high <= low + 1 else f"{low:,} to {high - 1:,} {unit}"


def _median(tally: Tally, x: float) -> tuple[float, str]:
    return x, f"median {tally.quantile(0.5):,}"


def _round_step(least: float) -> int:
    """1, 2 or 5 times a power of ten, not below `least`."""
    power = 10 ** max(math.floor(math.log10(max(least, 1))), 0)
    return next(int(factor * power) for factor in (1, 2, 5, 10) if factor * power >= least)


def _spread(tally: Tally, unit: str) -> str:
    low, high = tally.quantile(0.05), tally.quantile(0.95)
    return f"90 % between {low:,} and {high:,} {unit}" if low != high else f"{low:,} {unit}"


def _ratio(doublings: float) -> str:
    return f"{2**doublings:.2f}:1" if doublings >= 0 else f"1:{2**-doublings:.2f}"


def _spaced(marks: Sequence[tuple[float, str]]) -> list[tuple[float, str]]:
    """Leave out marks that would overlap one to their left."""
    kept: list[tuple[float, str]] = []
    for x, label in marks:
        if LEFT - 1 <= x <= WIDTH - RIGHT + 1 and (not kept or x - kept[-1][0] > 7 * max(len(label), 2) + 6):
            kept.append((x, label))
    return kept
