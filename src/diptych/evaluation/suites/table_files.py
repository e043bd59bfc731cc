"""The table of a suite as JSON, CSV and Markdown."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Sequence
from typing import Any

from diptych.evaluation.suites.measures import MEASURES
from diptych.evaluation.suites.suite import ALL
from diptych.evaluation.suites.table import PUBLISHED, SuiteTable, as_percent
from diptych.terminal import printable

FORMAT = 1


def as_json(shown: SuiteTable) -> dict[str, Any]:
    """All that the table has, with intervals, for programs."""
    columns = shown.columns()
    return {
        "format": FORMAT,
        "suite": shown.suite.name,
        "title": shown.suite.title,
        "models": list(shown.models),
        "data_sets": {
            each.name: {
                "title": each.title,
                "metric": each.metric,
                "group": each.group,
                "chance": shown.chance(each),
                "models": {m: dict(cell) for m, cell in shown.cells.get(each.name, {}).items()},
                "published": {
                    m: v for m in shown.suite.published_models if (v := shown.suite.published(m).get(each.name))
                },
                **({"get": each.where_to_get} if each in shown.missing else {}),
            }
            for each in shown.suite.data_sets
        },
        "averages": {
            group: {
                "data_sets": names,
                **{name: shown.average(values, group) for name, values in columns.items()},
            }
            for group, names in shown.groups.items()
        },
        "published_source": shown.suite.published_source,
    }


def as_csv(shown: SuiteTable) -> str:
    """A line for each data set and each average; values are shares, empty where there is none.

    The last columns are the ends of the intervals of what was measured here.
    """
    columns = shown.columns()
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    ends = [f"{model} {end}" for model in shown.models for end in ("low", "high")]
    writer.writerow(["data_set", "title", "group", "metric", "chance", *columns, *ends])
    for each in shown.measured:
        values = [v.get(each.name, "") for v in columns.values()]
        chance = shown.chance(each)
        about = [each.name, each.title, each.group, each.metric, "" if chance is None else chance]
        cells = shown.cells.get(each.name, {})
        intervals = (cells[model]["interval"] if model in cells else ("", "") for model in shown.models)
        writer.writerow([*about, *values, *itertools.chain.from_iterable(intervals)])
    for group in shown.groups:
        averages = [shown.average(values, group) for values in columns.values()]
        writer.writerow(
            ["average", "", group, "", "", *("" if each is None else each for each in averages), *[""] * len(ends)]
        )
    return file.getvalue()


def as_markdown(shown: SuiteTable, reference: str | None) -> str:
    """The table for a README, in per cent; the highest value of a row, of those measured here, is bold."""
    columns = shown.columns()
    names = [*shown.models, *([f"{reference}{PUBLISHED}"] if reference else [])]
    lines = [
        "| " + " | ".join(["data set", "measure", *map(_in_cell, names)]) + " |",
        "|" + "---|" * 2 + "---:|" * len(names),
    ]
    for each in shown.measured:
        values = [columns[name].get(each.name) for name in names]
        lines.append(_markdown_row(each.title, MEASURES[each.metric].title, values, len(shown.models)))
    for group, data_sets in shown.groups.items():
        values = [shown.average(columns[name], group) for name in names]
        about = "average" if group == ALL else f"average, {group}"
        lines.append(_markdown_row(f"*{about}*", f"of {len(data_sets)}", values, len(shown.models)))
    return "\n".join(lines) + "\n"


def _markdown_row(title: str, measure: str, values: Sequence[float | None], num_models: int) -> str:
    known = [value for value in values[:num_models] if value is not None]
    best = max(known, default=None) if num_models > 1 else None
    cells = [
        f"**{as_percent(value)}**" if value is not None and value == best and place < num_models else as_percent(value)
        for place, value in enumerate(values)
    ]
    return "| " + " | ".join([_in_cell(title), measure, *cells]) + " |"


def _in_cell(text: str) -> str:
    return printable(text).replace("\\", "\\\\").replace("|", "\\|")
