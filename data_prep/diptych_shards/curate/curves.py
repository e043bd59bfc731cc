"""The plot of head and tail: how many pairs queries have, before and after balancing, as lines for SVG."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diptych.pages.charts import short_number

WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 16, 36
MOST_POINTS = 120


@dataclass(frozen=True)
class Curves:
    """Both axes logarithmic: queries from the most frequent one on, and their pairs."""

    before: str
    """As SVG's `polyline` wants its points."""
    after: str
    limit: float | None
    """The height of t, if it is in the picture."""
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


def head_and_tail(counts: np.ndarray, kept: np.ndarray, pairs_per_query: int) -> Curves | None:
    """Means over queries of neighbouring ranks by `counts`; None where fewer than two queries have pairs."""
    order = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
    if len(order) < 2:
        return None
    edges = np.unique(np.geomspace(1, len(order) + 1, MOST_POINTS).astype(np.int64))
    middles = np.sqrt(edges[:-1] * (edges[1:] - 1.0))
    before, after = (
        np.add.reduceat(values[order].astype(np.float64), edges[:-1] - 1) / np.diff(edges) for values in (counts, kept)
    )
    x_high = max(np.log10(len(order)), 1.0)
    y_high = max(float(np.log10(before.max())), 1.0)

    def across(rank: float) -> float:
        return round(LEFT + float(np.log10(rank)) / x_high * (WIDTH - RIGHT - LEFT), 1)

    def down(pairs: float) -> float:
        # Below one pair on average lies on the axis.
        return round(HEIGHT - BOTTOM - float(np.log10(max(pairs, 1.0))) / y_high * (HEIGHT - BOTTOM - TOP), 1)

    def line(heights: np.ndarray) -> str:
        return " ".join(f"{across(x)},{down(y)}" for x, y in zip(middles, heights, strict=True))

    return Curves(
        line(before),
        line(after),
        down(pairs_per_query) if np.log10(pairs_per_query) <= y_high else None,
        tuple((across(10**power), short_number(10**power)) for power in range(int(x_high) + 1)),
        tuple((down(10**power), short_number(10**power)) for power in range(int(y_high) + 1)),
    )
