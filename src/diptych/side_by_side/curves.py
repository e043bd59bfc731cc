"""Draw the curves of several runs in one chart for each quantity, over samples seen and over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from diptych.learning_curves import is_number, measured, measured_numbers, seconds_at
from diptych.pages.charts import LineChart, line_chart
from diptych.side_by_side.runs import ComparedRun

Points = list[tuple[float, float]]

QUANTITIES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "Loss": ("loss", {"y_from_zero": True}),
    "Accuracy in the batch, image → text": ("i2t_accuracy", {"percent": True}),
    "Gradient norm": ("gradient_norm", {"y_from_zero": True}),
    "Logit scale": ("logit_scale", {}),
    "Learning rate": ("learning_rate", {"y_from_zero": True}),
    "Samples per second": ("samples_per_second", {"y_from_zero": True}),
}
"""Title → the key in metrics.jsonl, and how its chart differs."""
TIMED = ("Loss", "Accuracy in the batch, image → text")
"""The quantities that are drawn over time as well, with those that were measured during the runs."""
UNITS = ((2 * 86_400, 86_400, "days"), (2 * 3_600, 3_600, "hours"), (2 * 60, 60, "minutes"), (0, 1, "seconds"))
"""From how many seconds on, the seconds of a unit, and its name."""


@dataclass(frozen=True)
class Curves:
    over_samples: list[LineChart]
    over_time: list[LineChart]


def curves(runs: Sequence[ComparedRun]) -> Curves:
    """A chart for each quantity that a run has; each run has the same colour in all."""
    clocks = [seconds_at(run.metrics) for run in runs]
    longest = max((clock[-1][1] for clock in clocks if clock), default=0.0)
    _, size, unit = next(each for each in UNITS if longest >= each[0])
    series = {
        title: ([_logged(run, key) for run in runs], keywords) for title, (key, keywords) in QUANTITIES.items()
    } | dict(_measured(runs))

    over_samples, over_time = [], []
    for title, (points, keywords) in series.items():
        over_samples.append(_chart(title, runs, points, "samples seen", keywords))
        if title not in QUANTITIES or title in TIMED:
            timed = [_over_time(each, clock, size) for each, clock in zip(points, clocks, strict=True)]
            over_time.append(_chart(title, runs, timed, f"{unit} of training", keywords))
    return Curves([each for each in over_samples if each], [each for each in over_time if each])


def _chart(
    title: str, runs: Sequence[ComparedRun], points: Sequence[Points], x_label: str, keywords: Mapping[str, Any]
) -> LineChart | None:
    series = {run.name: each for run, each in zip(runs, points, strict=True)}
    drawn = line_chart(title, {**series}, x_label=x_label, **keywords)
    if drawn is None or title != "Loss":
        return drawn
    return replace(drawn, logarithmic=line_chart(title, {**series}, x_label=x_label, logarithmic_y=True))


def _logged(run: ComparedRun, key: str) -> Points:
    return [(record["samples_seen"], record[key]) for record in run.metrics if is_number(record.get(key))]


def _measured(runs: Sequence[ComparedRun]) -> dict[str, tuple[list[Points], Mapping[str, Any]]]:
    """The numbers that were measured during the runs, each on each data set."""
    found: dict[str, tuple[list[Points], Mapping[str, Any]]] = {}
    for title, number in measured_numbers():
        each = [measured(run.records, number) for run in runs]
        for data in dict.fromkeys(name for points in each for name in points):
            lines = [points.get(data, []) for points in each]
            found[f"{title} · {data}"] = (lines, {"percent": number != "loss"})
    return found


def _over_time(points: Points, clock: Sequence[tuple[int, float]], size: float) -> Points:
    """The points with the time at which so many samples were seen, in units of so many seconds."""
    if not clock:
        return []
    samples, seconds = zip(*clock, strict=True)
    return [(float(np.interp(x, samples, seconds)) / size, y) for x, y in points]
