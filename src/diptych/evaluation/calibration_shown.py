"""Show a calibration: tables for the terminal, facts and a reliability diagram for the report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diptych.evaluation.reliability import NUM_BINS
from diptych.pages.axes import Frame
from diptych.terminal import counted, percent, table

FRAME = Frame(width=400, height=380, left=48, right=384, top=12, bottom=336)
LARGEST_DOT = 14.0
"""Radius in pixels of the dot of a bin that has all pictures. Areas are in proportion."""


@dataclass(frozen=True)
class Dot:
    """A bin of a reliability diagram."""

    x: float
    y: float
    radius: float
    when: str
    title: str


@dataclass(frozen=True)
class ReliabilityChart:
    dots: tuple[Dot, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    frame: Frame = FRAME


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


def reliability_chart(temperature: Mapping[str, Any]) -> ReliabilityChart:
    """The reliability diagram before and after, in a square from 0 to 1."""
    ticks = [number / 5 for number in range(6)]
    dots = tuple(
        Dot(
            FRAME.x(each["confidence"]),
            FRAME.y(each["accuracy"]),
            round(max(2.0, LARGEST_DOT * (each["pictures"] / temperature["pictures_measured"]) ** 0.5), 1),
            when,
            f"{when}: of {counted(each['pictures'], 'answer')} given with {percent(each['confidence'])}, "
            f"{percent(each['accuracy'])} right",
        )
        for when in ("before", "after")
        for each in temperature[when]["bins"]
    )
    return ReliabilityChart(
        dots,
        tuple((FRAME.x(each), f"{each:.0%}") for each in ticks),
        tuple((FRAME.y(each), f"{each:.0%}") for each in ticks),
    )


def _halves(part: Mapping[str, Any]) -> str:
    return f"{counted(part['pictures_fitted'], 'picture')} to fit, {part['pictures_measured']:,} others to measure"
