"""Describe runs side by side: in lines of at most 80 columns, and as a document for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from diptych.evaluation import EVALUATORS
from diptych.side_by_side.differences import Row
from diptych.side_by_side.runs import ComparedRun, differing_settings
from diptych.terminal import percent, points, points_range, printable, table

SHOWN_FACTS = {"samples seen": "samples", "training time": "time", "final loss": "loss"}
"""Facts about the training in the terminal's table, and what it calls them."""


def describe(runs: Sequence[ComparedRun], rows: Sequence[Row]) -> str:
    """How long each run trained, what is missing of it, and its results."""
    notes = [f"{printable(each.name)}: {printable(note)}" for each in runs for note in each.notes]
    results = _results(runs, rows)
    return "\n".join([_table(runs), *notes, *([f"\n{results}"] if results else [])])


def as_document(runs: Sequence[ComparedRun], rows: Sequence[Row]) -> dict[str, Any]:
    """All numbers, for programs."""
    names = [each.name for each in runs]
    return {
        "runs": [
            {"name": each.name, "path": str(each.path), "training": each.facts, "notes": each.notes} for each in runs
        ],
        "settings": {key: dict(zip(names, values, strict=True)) for key, values in differing_settings(runs)},
        "results": [
            {
                "evaluator": row.evaluator,
                "data": row.data,
                "metric": row.metric,
                "runs": {
                    name: {
                        "value": cell.number.value,
                        "interval": cell.number.interval,
                        "difference": asdict(cell.difference) if cell.difference else None,
                    }
                    for name, cell in zip(names, row.cells, strict=True)
                    if cell
                },
            }
            for row in rows
        ],
    }


def _table(runs: Sequence[ComparedRun]) -> str:
    """A line for each run: how long it trained."""
    lines = [["run", *SHOWN_FACTS.values()]]
    lines += [[each.name, *(each.facts.get(fact, "-") for fact in SHOWN_FACTS)] for each in runs]
    return table(lines, align="<" + ">" * len(SHOWN_FACTS))


def _results(runs: Sequence[ComparedRun], rows: Sequence[Row]) -> str:
    """The most important numbers of each run, with the difference from the first; empty if there are none."""
    lines = [["run", "data", "", "value", "change", "95 % interval", "p"]]
    before = None
    for row in rows:
        if not EVALUATORS[row.evaluator].is_headline(row.metric):
            continue
        if row.evaluator != before and EVALUATORS[row.evaluator].fits:  # whose numbers are called as zero-shot's
            lines.append(["", "", f"{EVALUATORS[row.evaluator].title}:", *[""] * 4])
        before = row.evaluator
        is_share = EVALUATORS[row.evaluator].is_share(row.metric)
        for each, cell in zip(runs, row.cells, strict=True):
            if cell is None:
                continue
            value, change = cell.number.value, cell.difference
            lines.append(
                [
                    each.name,
                    printable(row.data, 12),
                    row.metric,
                    percent(value) if is_share else f"{value:.4g}",
                    points(change.value) if change else "",
                    points_range(*change.interval) if change else "",
                    f"{change.p_value:.2g}" if change else "",
                ]
            )
    return table(lines, align="<<<>>>>") if len(lines) > 1 else ""
