"""Put runs side by side on one page: curves, settings, results with paired tests, examples.

The first run is the one that the others are compared with. Results are those of `diptych evaluate`; two runs are
tested on a data set if both were evaluated on the same pictures and classes under the same name.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diptych.command_line import path_argument
from diptych.files import check_writable, commit_file, writing
from diptych.terminal import percent, points, points_range, printable, shown, table

if TYPE_CHECKING:
    from diptych.side_by_side.differences import Row
    from diptych.side_by_side.runs import ComparedRun

WAY_OUT = "name another file with --page"
WAY_OUT_JSON = "name another file with --json"
SHOWN_FACTS = {"samples seen": "samples", "training time": "time", "final loss": "loss"}
"""Facts about the training in the terminal's table, and what it calls them."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", type=path_argument, nargs="+", metavar="RUN", help="run directories, two or more")
    parser.add_argument(
        "--page",
        type=path_argument,
        default=Path("comparison.html"),
        metavar="FILE.html",
        help="where the page goes (default: %(default)s)",
    )
    parser.add_argument("--json", type=path_argument, metavar="FILE", help="write the numbers as JSON too")


def run(arguments: argparse.Namespace) -> None:
    """Write the page, print a short table and the page's path."""
    from diptych.side_by_side.differences import differences
    from diptych.side_by_side.page import render
    from diptych.side_by_side.runs import read_runs

    runs = read_runs(arguments.runs)
    check_writable(arguments.page, WAY_OUT)
    if arguments.json is not None:
        check_writable(arguments.json, WAY_OUT_JSON)
    rows = differences(runs)
    print(_table(runs))
    for each in runs:
        for note in each.notes:
            print(f"{printable(each.name)}: {printable(note)}")
    if results := _results(runs, rows):
        print(f"\n{results}")
    page = render(runs, rows)
    with writing(arguments.page, WAY_OUT):
        commit_file(arguments.page, page)
    print(f"\npage: {shown(arguments.page)}")
    if arguments.json is not None:
        document = json.dumps(_document(runs, rows), indent=1, default=str)
        with writing(arguments.json, WAY_OUT_JSON):
            commit_file(arguments.json, document.encode("utf-8", "backslashreplace"))
        print(f"json: {shown(arguments.json)}")


def _headlines(rows: Sequence[Row]) -> list[Row]:
    from diptych.evaluation import EVALUATORS

    return [row for row in rows if EVALUATORS[row.evaluator].is_headline(row.metric)]


def _table(runs: Sequence[ComparedRun]) -> str:
    """A line for each run: how long it trained."""
    lines = [["run", *SHOWN_FACTS.values()]]
    lines += [[each.name, *(each.facts.get(fact, "-") for fact in SHOWN_FACTS)] for each in runs]
    return table(lines, align="<" + ">" * len(SHOWN_FACTS))


def _results(runs: Sequence[ComparedRun], rows: Sequence[Row]) -> str:
    """The most important numbers of each run, with the difference from the first; empty if there are none."""
    from diptych.evaluation import EVALUATORS

    lines = [["run", "data", "", "value", "change", "95 % interval", "p"]]
    before = None
    for row in _headlines(rows):
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


def _document(runs: Sequence[ComparedRun], rows: Sequence[Row]) -> dict[str, Any]:
    from diptych.side_by_side.runs import differing_settings

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
