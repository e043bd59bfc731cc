"""Geometry of line charts; the report's template draws them as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from diptych.pages.template import percent as shown_percent

WIDTH, HEIGHT = 325, 186
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 12, 44
MOST_POINTS = 360


@dataclass(frozen=True)
class Line:
    label: str
    points: str
    """As SVG's `polyline` wants them."""
    last: tuple[float, float]


@dataclass(frozen=True)
class Chart:
    title: str
    lines: tuple[Line, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    final: str
    """The last value of each line, as text."""
    restarts: tuple[float, ...]
    checkpoints: tuple[float, ...]
    epochs: tuple[float, ...]
    """Where along the axis the run began again, where it was saved, and where an epoch ended."""
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM
    logarithmic: Chart | None = None
    """The same lines on a logarithmic axis, for a reader who asks for them."""

    @property
    def right(self) -> int:
        return self.width - RIGHT


def line_chart(
    title: str,
    series: dict[str, Sequence[tuple[float, float]]],
    *,
    y_from_zero: bool = False,
    percent: bool = False,
    logarithmic: bool = False,
    width: int = WIDTH,
    restarts: Sequence[float] = (),
    checkpoints: Sequence[float] = (),
    epochs: Sequence[float] = (),
) -> Chart | None:
    """A chart of (x, y) points by label, those that are not finite left out; None where no line has two.

    logarithmic: the y axis is, and points at or below zero are left out as well.
    restarts, checkpoints, epochs: xs that are marked, if they are within the lines.
    """
    above = 0.0 if logarithmic else -math.inf
    finite = {
        label: thin([(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y) and y > above])
        for label, points in series.items()
    }
    drawn = {label: points for label, points in finite.items() if len(points) > 1}
    if not drawn:
        return None
    last = [points[-1][1] for points in drawn.values()]
    if logarithmic:
        drawn = {label: [(x, math.log10(y)) for x, y in points] for label, points in drawn.items()}
    xs = [x for points in drawn.values() for x, _ in points]
    ys = [y for points in drawn.values() for _, y in points]
    x_low, x_high = min(0.0, *xs), max(xs)
    y_low, y_high = (0.0 if y_from_zero else min(ys)), max(ys)
    if percent:
        y_low, y_high = 0.0, 1.0
    if y_high - y_low <= 1e-12 * max(1.0, abs(y_high)):
        y_low, y_high = y_low - (abs(y_low) or 1) / 2, y_high + (abs(y_high) or 1) / 2
    x_high = x_high if x_high > x_low else x_low + 1

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - x_low) / (x_high - x_low) * (width - RIGHT - LEFT)
        down = HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - BOTTOM - TOP)
        return round(across, 1), round(down, 1)

    lines = tuple(
        Line(label, " ".join("{},{}".format(*place(x, y)) for x, y in points), place(*points[-1]))
        for label, points in drawn.items()
    )

    def along(places: Sequence[float]) -> tuple[float, ...]:
        return tuple(dict.fromkeys(place(x, y_low)[0] for x in places if x_low <= x <= x_high))

    across = ticks(x_low, x_high, width // 80)
    up = logarithmic_ticks(10**y_low, 10**y_high) if logarithmic else ticks(y_low, y_high, 4)
    x_ticks = tuple((place(x, y_low)[0], label) for x, label in zip(across, different_numbers(across), strict=True))
    labels = [f"{100 * y:.0f}\u202f%" for y in up] if percent else different_numbers(up)
    heights = [math.log10(y) for y in up] if logarithmic else up
    y_ticks = tuple((place(x_low, y)[1], label) for y, label in zip(heights, labels, strict=True))
    final = " · ".join(shown_percent(value) if percent else short_number(value) for value in last)
    return Chart(title, lines, x_ticks, y_ticks, final, along(restarts), along(checkpoints), along(epochs), width)


def thin(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most MOST_POINTS points, each the mean of its neighbours; the last one stays as it is."""
    size = math.ceil(len(points) / MOST_POINTS)
    if size <= 1:
        return list(points)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    means = [(_mean([x for x, _ in group]), _mean([y for _, y in group])) for group in groups]
    return [*means[:-1], points[-1]]


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers from low to high, 1, 2 or 5 times a power of ten apart."""
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = min((1, 2, 5, 10), key=lambda factor: abs(math.log(factor * power / raw))) * power
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def logarithmic_ticks(low: float, high: float) -> list[float]:
    """Numbers above zero from low to high: 1, 2 or 5 times powers of ten, the powers alone, or else evenly apart."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 5), (1,)):
        inside = [step * 10.0**power for power in powers for step in steps]
        inside = [number for number in inside if low * (1 - 1e-9) <= number <= high * (1 + 1e-9)]
        if len(inside) < 2:
            return [number for number in ticks(low, high, 4) if number > 0]
        if len(inside) <= 6:
            break
    return inside


def different_numbers(values: Sequence[float]) -> list[str]:
    """Short numbers with as many digits as it takes to tell them apart."""
    labels: list[str] = []
    for digits in range(3, 12):
        labels = [short_number(value, digits) for value in values]
        if len(set(labels)) == len(set(values)):
            break
    return labels


def short_number(value: float, digits: int = 3) -> str:
    """Three digits, or as many as asked for, and a unit: 12.8B, 51.2k, 0.0015."""
    if value != 0 and abs(value) < 1e-3:
        return f"{value:.{digits - 1}g}"
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size * 0.9995:
            return f"{value / size:.{digits}g}{unit}"
    return f"{value:.{digits}g}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
