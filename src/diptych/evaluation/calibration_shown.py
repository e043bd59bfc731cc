"""Show a calibration: tables for the terminal, facts and a reliability diagram for the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from diptych.evaluation.reliability import NUM_BINS
from diptych.pages.charts import LineChart, line_chart
from diptych.terminal import counted, percent, table


def readable(document: Mapping[str, Any]) -> str:
    """The parts of a calibration as tables 80 columns wide."""
    parts = []
    if temperature := document.get("temperature"):
        rows = [["", "before", "after"], *temperature_facts(temperature)]
        about = f"{_halves(temperature)}, {counted(temperature['classes'], 'class')}"
        parts.append(f"temperature: {about}\n{table(rows, align='<>>')}")
    if independent := document.get("independent"):
        about = f"{_halves(independent)}, {counted(independent['labels'], 'label')}"
        parts.append(f"independent labels: {about}\n{table(independent_facts(independent), align='<>')}")
    return "\n\n".join(parts)


def temperature_facts(temperature: Mapping[str, Any]) -> list[list[str]]:
    """[what, before, after] of each number."""
    before, after = temperature["before"], temperature["after"]
    return [
        ["logit scale (1 / temperature)", f"{before['logit_scale']:.1f}", f"{after['logit_scale']:.1f}"],
        ["negative log likelihood", f"{before['nll']:.3f}", f"{after['nll']:.3f}"],
        [f"expected calibration error, {NUM_BINS} bins", percent(before["ece"]), percent(after["ece"])],
    ]


def independent_facts(independent: Mapping[str, Any]) -> list[list[str]]:
    """[what, value] of each number."""
    low, high = independent["false_alarm_interval"]
    area = independent["none_of_these_roc_auc"]
    return [
        ["stated false-alarm rate", percent(independent["stated_rate"])],
        ["pictures with a false alarm", percent(independent["false_alarm_rate"])],
        ["  its 95 % interval", f"{percent(low)} to {percent(high)}"],
        ["labels found at this rate", percent(independent["labels_found"])],
        ["none of these, area under the ROC curve", "-" if area is None else f"{area:.3f}"],
    ]


def reliability_chart(temperature: Mapping[str, Any]) -> LineChart | None:
    """The reliability diagram before and after; None if all pictures are in one bin."""
    lines: dict[str, Sequence[tuple[float, float]]] = {
        when: [(each["confidence"], each["accuracy"]) for each in temperature[when]["bins"]]
        for when in ("after", "before")
    }
    return line_chart(
        "Share of right answers",
        lines,
        x_label="stated probability",
        about=f"in {NUM_BINS} bins of probability",
        diagonal=True,
        width=420,
        height=320,
    )


def _halves(part: Mapping[str, Any]) -> str:
    return f"{counted(part['pictures_fitted'], 'picture')} to fit, {part['pictures_measured']:,} others to measure"
