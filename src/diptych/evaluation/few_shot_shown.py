"""Show few-shot results: a table for the terminal, a chart for the report."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from diptych.evaluation import linear_probe
from diptych.evaluation.few_shot import metric_of
from diptych.pages.charts import LineChart, line_chart
from diptych.terminal import counted, percent, percent_range, printable, table

WIDTH, HEIGHT = 514, 260


def readable(name: str, result: Mapping[str, Any]) -> str:
    """The accuracy after each number of shots as a table 80 columns wide, with what zero-shot equals."""
    title = f"few-shot, {printable(name, 24)}: probes fitted to some pictures of each class"
    shown = [["pictures of each class", "top-1", "95 % interval", "chance"], *rows(result)]
    lines = [line for each in remarks(result) for line in textwrap.wrap(printable(each), 80)]
    return "\n".join([title, table(shown, align="<>>>"), *lines])


def rows(result: Mapping[str, Any]) -> list[list[str]]:
    """[pictures of each class, top-1, its 95 % interval, chance] of zero-shot and of each number of shots."""
    shown = []
    is_whole = result["train_pictures"] == result["train_pictures_available"]
    for shots in (0, *result["shots"]):
        metric = metric_of(shots)
        about = " (zero-shot)" if shots == 0 else " (all)" if metric == "top1_all" and is_whole else ""
        numbers = percent(result["metrics"][metric]), percent_range(*result["intervals"][metric])
        shown.append([f"{shots:.3g}{about}", *numbers, percent(result["chance"][metric])])
    return shown


def remarks(result: Mapping[str, Any]) -> list[str]:
    """Sentences about the result."""
    interval = result["intervals"]["zero_shot_equals_shots"]
    between = f" (95 % interval {_bounds(result['shots'], *interval)})" if interval else ""
    pictures = "labelled picture" if result["zero_shot_equals"] == "1" else "labelled pictures"
    said = [f"Zero-shot equals {result['zero_shot_equals']} {pictures} of each class{between}."]
    said += linear_probe.remarks(result)
    for shots, fewer in result.get("penalties_taken_from", {}).items():
        taken = f"that of {fewer}" if fewer else "the variance of the features"
        of_shots = f"The penalty of {counted(int(shots), 'picture')} of each class"
        said.append(f"{of_shots} is {taken}: no others are left to choose it on.")
    fitted, available = result["train_pictures"], result["train_pictures_available"]
    if fitted < available:
        said.append(f"The last probe is fitted to {fitted:,} of {available:,} pictures, to limit the work.")
    said += [f"No probe of {shots} pictures of each class: {why}." for shots, why in result["shots_left_out"].items()]
    return said


def _bounds(shots: Sequence[float], low: float, high: float) -> str:
    """The interval as text; a bound at the end of what was measured may be any number beyond it."""
    lowest = f"{low:.2g}" + (" or fewer" if low <= min(shots) else "")
    return f"{lowest} to {high:.2g}" + (" or more" if high >= max(shots) else "")


def chart(result: Mapping[str, Any]) -> LineChart | None:
    """Accuracy over the number of shots, with the level of zero-shot; None with a single number of shots."""
    metrics, intervals, shots = result["metrics"], result["intervals"], result["shots"]
    zero_shot = metrics[metric_of(0)]
    return line_chart(
        "Top-1",
        {"few-shot": [(each, metrics[metric_of(each)]) for each in shots]},
        x_label="labelled pictures of each class",
        about=f"zero-shot {percent(zero_shot)}, dashed",
        percent=True,
        logarithmic_x=True,
        # The last is labelled where its label does not touch the one before.
        x_numbers=[each for each in shots if each < shots[-1] or each >= 1.25 * max(shots[:-1], default=0)],
        whiskers=[(each, *intervals[metric_of(each)]) for each in shots],
        level=(zero_shot, ""),
        width=WIDTH,
        height=HEIGHT,
    )
