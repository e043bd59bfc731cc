"""Write a page about several runs side by side; it loads and runs nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from diptych.evaluation import EVALUATORS
from diptych.pages.charts import COLOURS
from diptych.pages.template import day, percent, template
from diptych.side_by_side.curves import curves
from diptych.side_by_side.differences import Cell, Row
from diptych.side_by_side.disagreements import Example, disagreements
from diptych.side_by_side.runs import ComparedRun, differing_settings
from diptych.terminal import percent_range, points, points_range

SURE = 0.05
"""Differences with a smaller probability of being luck are marked."""


def render(runs: Sequence[ComparedRun], rows: Sequence[Row]) -> bytes:
    """The page. rows: as `differences` gives them."""
    title = " and ".join(run.name for run in runs) if len(runs) == 2 else f"{len(runs)} runs"
    drawn = curves(runs)
    facts = dict.fromkeys(name for run in runs for name in run.facts)
    page = template("diptych", "side_by_side/page.html.jinja").render(
        title=title,
        created=day(time.time()),
        runs=[
            {"name": run.name, "path": str(run.path.resolve()), "colour": _colour(place), "notes": run.notes}
            for place, run in enumerate(runs)
        ],
        results=list(_results(rows)),
        over_samples=drawn.over_samples,
        over_time=drawn.over_time,
        batch_sizes={run.config.training.global_batch_size for run in runs if run.config},
        facts=[(name, [run.facts.get(name, "") for run in runs]) for name in facts],
        settings=differing_settings(runs),
        disagreements=list(_disagreements(runs)),
    )
    return page.encode()


def _colour(place: int) -> str:
    return COLOURS[place % len(COLOURS)]


def _results(rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    before = None
    for row in rows:
        about = f"{EVALUATORS[row.evaluator].title} · {row.data}"
        is_share = EVALUATORS[row.evaluator].is_share(row.metric)
        yield {
            "heading": about if about != before else "",
            "metric": row.metric.replace("_", " "),
            "cells": [_cell(cell, is_share) if cell else None for cell in row.cells],
        }
        before = about


def _cell(cell: Cell, is_share: bool) -> dict[str, Any]:
    value, interval, difference = cell.number.value, cell.number.interval, cell.difference
    if is_share:
        shown = {"value": percent(value), "interval": percent_range(*interval) if interval else ""}
    else:
        shown = {"value": f"{value:.4g}", "interval": "–".join(f"{bound:.4g}" for bound in interval or ())}
    if difference is None:
        return {**shown, "change": ""}
    return {
        **shown,
        "change": points(difference.value),
        "about": f"{points_range(*difference.interval)}, p\N{NO-BREAK SPACE}{difference.p_value:.2g}",
        "test": difference.test,
        "class": "" if difference.p_value >= SURE else "better" if difference.value > 0 else "worse",
    }


def _disagreements(runs: Sequence[ComparedRun]) -> Iterator[dict[str, Any]]:
    """What the first run and each other one answer differently."""
    for place, run in enumerate(runs[1:], 1):
        for found in disagreements(runs[0].results, run.results):
            sides = [
                _side(runs[0], 0, run, found.first_only, found.first_examples),
                _side(run, place, runs[0], found.second_only, found.second_examples),
            ]
            yield {
                "title": f"{EVALUATORS[found.evaluator].title} · {found.data}",
                "runs": (runs[0].name, run.name) if len(runs) > 2 else (),
                "sides": [side for side in sides if side["number"]],
                "unreadable": found.unreadable,
            }


def _side(
    right: ComparedRun, place: int, wrong: ComparedRun, number: int, examples: Sequence[Example]
) -> dict[str, Any]:
    """What the page shows of the pictures that `right`, at this place, answers correctly and `wrong` does not."""
    return {"right": right.name, "colour": _colour(place), "wrong": wrong.name, "number": number, "examples": examples}
