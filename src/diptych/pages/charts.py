"""Geometry of line charts and bar charts; the macros in charts.html.jinja draw them as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from diptych.pages.axes import Frame, different_numbers, logarithmic_ticks, short_number, ticks
from diptych.pages.template import percent as shown_percent

WIDTH, HEIGHT = 325, 186
BAR_FRAME = Frame(width=420, height=190, left=44, right=414, top=30, bottom=164)
MOST_POINTS = 360
COLOURS = ("first", "second", "third", "fourth", "fifth", "sixth")

_BAR_GAP = 1.5

Ticks = tuple[tuple[float, str], ...]
"""(place along the axis, label)"""


@dataclass(frozen=True)
class Line:
    label: str
    points: str
    """As SVG's `polyline` wants them."""
    last: tuple[float, float]
    colour: str
    """A class of page.html.jinja, the same for the same place among the series of any chart."""


@dataclass(frozen=True)
class LineChart:
    title: str
    about: str
    x_label: str
    lines: tuple[Line, ...]
    x_ticks: Ticks
    y_ticks: Ticks
    frame: Frame
    level: tuple[float, str] | None
    """A height that is marked all along, and its label."""
    restarts: tuple[float, ...]
    checkpoints: tuple[float, ...]
    epochs: tuple[float, ...]
    """Where along the axis the run resumed, where it was saved, and where an epoch ended."""
    whiskers: tuple[tuple[float, float, float], ...] = ()
    """Intervals around points: the place along the axis, and the heights of both ends."""
    logarithmic: LineChart | None = None
    """The same lines on a logarithmic axis, for a reader who asks for them."""


@dataclass(frozen=True)
class Bar:
    x: float
    y: float
    width: float
    height: float
    title: str


@dataclass(frozen=True)
class BarChart:
    title: str
    about: str
    bars: tuple[Bar, ...]
    x_ticks: Ticks
    y_ticks: Ticks
    frame: Frame
    median: tuple[float, str] | None


def line_chart(
    title: str,
    series: dict[str, Sequence[tuple[float, float]]],
    *,
    x_label: str,
    about: str | None = None,
    y_from_zero: bool = False,
    percent: bool = False,
    logarithmic_x: bool = False,
    logarithmic_y: bool = False,
    width: int = WIDTH,
    height: int = HEIGHT,
    x_numbers: Sequence[float] | None = None,
    whiskers: Sequence[tuple[float, float, float]] = (),
    level: tuple[float, str] | None = None,
    restarts: Sequence[float] = (),
    checkpoints: Sequence[float] = (),
    epochs: Sequence[float] = (),
) -> LineChart | None:
    """A chart of (x, y) points by label, those that are not finite left out; None where no line has two.

    about: a few words next to the title; the last value of each line if None.
    logarithmic_x, logarithmic_y: this axis is logarithmic, and points at or below zero on it are left out as well.
    x_numbers: the xs that are labelled along the axis; round numbers if None.
    whiskers: (x, low, high) of intervals, which may reach above and below the lines.
    level: a y that is marked all along, with its label, if it is within the lines.
    restarts, checkpoints, epochs: xs that are marked, if they are within the lines.
    """
    of_x, of_y = (math.log10 if is_logarithmic else float for is_logarithmic in (logarithmic_x, logarithmic_y))
    above_x, above_y = (0.0 if is_logarithmic else -math.inf for is_logarithmic in (logarithmic_x, logarithmic_y))
    finite = {
        label: thin([(x, y) for x, y in points if above_x < x < math.inf and above_y < y < math.inf])
        for label, points in series.items()
    }
    drawn = {label: points for label, points in finite.items() if len(points) > 1}
    if not drawn:
        return None
    colours = {label: COLOURS[place % len(COLOURS)] for place, label in enumerate(series)}
    xs = [of_x(x) for points in drawn.values() for x, _ in points]
    ys = [of_y(y) for points in drawn.values() for _, y in points]
    x_low, x_high = (min(xs) if logarithmic_x else min(0.0, *xs)), max(xs)
    y_low, y_high = (0.0 if y_from_zero else min(ys)), max(ys)
    if percent:
        y_low, y_high = 0.0, 1.0
    if y_high - y_low <= 1e-12 * max(1.0, abs(y_high)):
        y_low, y_high = y_low - (abs(y_low) or 1) / 2, y_high + (abs(y_high) or 1) / 2
    x_high = x_high if x_high > x_low else x_low + 1
    frame = Frame(width, height, left=44, right=width - 12, top=12, bottom=height - 44)

    def across(x: float) -> float:
        return frame.x((of_x(x) - x_low) / (x_high - x_low))

    def down(y: float) -> float:
        return frame.y((of_y(y) - y_low) / (y_high - y_low))

    def marked(places: Sequence[float]) -> tuple[float, ...]:
        return tuple(dict.fromkeys(across(x) for x in places if x_low <= of_x(x) <= x_high))

    if x_numbers is None:
        x_numbers = logarithmic_ticks(10**x_low, 10**x_high) if logarithmic_x else ticks(x_low, x_high, width // 80)
    y_numbers = logarithmic_ticks(10**y_low, 10**y_high) if logarithmic_y else ticks(y_low, y_high, 4)
    y_labels = [f"{100 * y:.0f}\u202f%" for y in y_numbers] if percent else different_numbers(y_numbers)
    if about is None:
        last = [points[-1][1] for points in drawn.values()]
        about = " · ".join(shown_percent(value) if percent else short_number(value) for value in last)
    return LineChart(
        title,
        about,
        x_label,
        tuple(
            Line(
                label,
                " ".join(f"{across(x)},{down(y)}" for x, y in points),
                (across(points[-1][0]), down(points[-1][1])),
                colours[label],
            )
            for label, points in drawn.items()
        ),
        tuple((across(x), label) for x, label in zip(x_numbers, different_numbers(x_numbers), strict=True)),
        tuple((down(y), label) for y, label in zip(y_numbers, y_labels, strict=True)),
        frame,
        (down(level[0]), level[1]) if level and y_low <= of_y(level[0]) <= y_high else None,
        marked(restarts),
        marked(checkpoints),
        marked(epochs),
        tuple((across(x), down(low), down(high)) for x, low, high in whiskers),
    )


def bar_chart(
    title: str,
    counts: Sequence[int],
    labels: Sequence[str],
    *,
    about: str,
    x_ticks: Sequence[tuple[float, str]],
    median: tuple[float, str] | None = None,
) -> BarChart:
    """A chart with a bar for each count, of which at least one is above zero.

    labels: what each bar counts, shown when a reader points at it.
    x_ticks, median: (place, label); bar n reaches from place n to n + 1. Ticks that would overlap are left out.
    """
    frame, highest, total = BAR_FRAME, max(counts), sum(counts)

    def across(place: float) -> float:
        return frame.x(place / len(counts))

    width = round(max((frame.right - frame.left) / len(counts) - _BAR_GAP, 1), 1)
    bars = []
    for place, (count, label) in enumerate(zip(counts, labels, strict=True)):
        if count:
            top = min(frame.y(count / highest), frame.bottom - 1.0)
            what = f"{label}: {count:,} ({shown_percent(count, total)})"
            bars.append(Bar(across(place), top, width, round(frame.bottom - top, 1), what))
    return BarChart(
        title,
        about,
        tuple(bars),
        _spaced([(across(place), label) for place, label in x_ticks], frame),
        tuple((frame.y(y / highest), short_number(y)) for y in ticks(0, highest, 3) if 0 < y == int(y)),
        frame,
        None if median is None else (across(median[0]), median[1]),
    )


def thin(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most MOST_POINTS points, each the mean of its neighbours; the last one stays as it is."""
    size = math.ceil(len(points) / MOST_POINTS)
    if size <= 1:
        return list(points)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    means = [(_mean([x for x, _ in group]), _mean([y for _, y in group])) for group in groups]
    return [*means[:-1], points[-1]]


def _spaced(marks: Sequence[tuple[float, str]], frame: Frame) -> Ticks:
    """Leave out marks outside the frame, and those that would overlap one to their left."""
    kept: list[tuple[float, str]] = []
    for x, label in marks:
        if frame.left - 1 <= x <= frame.right + 1 and (not kept or x - kept[-1][0] > 7 * max(len(label), 2) + 6):
            kept.append((x, label))
    return tuple(kept)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
