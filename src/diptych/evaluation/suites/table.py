"""The table of a suite: data sets × models, with averages and published numbers, in several formats."""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diptych.evaluation.suites.data_folders import LABELS
from diptych.evaluation.suites.measures import MEASURES
from diptych.evaluation.suites.suite import ALL, DOWNLOAD, Suite, SuiteDataSet
from diptych.terminal import columns as columns_of
from diptych.terminal import counted, fit, percent_range, printable, table

MODELS_AT_ONCE = 3
"""Models next to one another in 80 columns."""
FOR_VALUES = 48
"""Columns of the terminal for the values of all models; the rest is for the data set and its measure."""
FOR_INTERVAL = 18
"""Of these, for the interval and chance, which a model alone has."""
PUBLISHED = " (published)"
FORMAT = 1

Values = Mapping[str, float]
"""Data set → share."""


@dataclass(frozen=True)
class SuiteTable:
    """What was measured of a suite, next to what others published."""

    suite: Suite
    models: tuple[str, ...]
    cells: Mapping[str, Mapping[str, Mapping[str, Any]]]
    """Data set → model → cell; without data sets that are not there."""

    @property
    def measured(self) -> list[SuiteDataSet]:
        """The data sets that at least one model was measured on."""
        return [each for each in self._rows if any(self.value(each.name, model) is not None for model in self.models)]

    @property
    def failed(self) -> list[tuple[SuiteDataSet, str, str]]:
        """(data set, models, reason) of each measurement that failed; models is empty if all failed alike."""
        found = []
        for each in self._rows:
            reasons: dict[str, list[str]] = {}
            for model, cell in self.cells[each.name].items():
                if "failed" in cell:
                    reasons.setdefault(cell["failed"], []).append(model)
            for reason, models in reasons.items():
                found.append((each, "" if len(models) == len(self.models) else ", ".join(models), reason))
        return found

    @property
    def missing(self) -> list[SuiteDataSet]:
        return [each for each in self.suite.data_sets if each.name not in self.cells]

    @property
    def groups(self) -> dict[str, list[str]]:
        """Group → its data sets that every model was measured on, those of all groups first."""
        common = [each for each in self.measured if all(self.value(each.name, m) is not None for m in self.models)]
        groups = {ALL: [each.name for each in common]}
        for each in common:
            groups.setdefault(each.group, []).append(each.name)
        return groups if len(groups) > 2 else {ALL: groups[ALL]}

    def value(self, data_set: str, model: str) -> float | None:
        value: float | None = self.cells[data_set].get(model, {}).get("value")
        return value

    def chance(self, data_set: SuiteDataSet) -> float | None:
        """What guessing reaches: as the suite says, else as it was measured."""
        if data_set.chance is not None:
            return data_set.chance
        known = [cell.get("chance") for cell in self.cells.get(data_set.name, {}).values()]
        return next((each for each in known if each is not None), None)

    def average(self, values: Values, group: str) -> float | None:
        """The mean of a group's values; None if one is not known, since the mean would be of other data sets."""
        names = self.groups[group]
        if not names or any(name not in values for name in names):
            return None
        return sum(values[name] for name in names) / len(names)

    def columns(self) -> dict[str, Values]:
        """Model → its values; then those of the published models."""
        own = {
            model: {each.name: value for each in self.measured if (value := self.value(each.name, model)) is not None}
            for model in self.models
        }
        return own | {f"{model}{PUBLISHED}": self.suite.published(model) for model in self.suite.published_models}

    @property
    def _rows(self) -> list[SuiteDataSet]:
        return [each for each in self.suite.data_sets if each.name in self.cells]


def as_text(shown: SuiteTable, reference: str | None) -> str:
    """The table in 80 columns, a few models at a time, and lists of what is missing or failed.

    reference: the published model that is shown next to the others.
    """
    parts = [printable(shown.suite.title)]
    columns = shown.columns()
    published = {f"{reference}{PUBLISHED}": columns[f"{reference}{PUBLISHED}"]} if reference else {}
    for first in range(0, len(shown.models) if shown.measured else 0, MODELS_AT_ONCE):
        some = {model: columns[model] for model in shown.models[first : first + MODELS_AT_ONCE]}
        parts.append(_block(shown, some | published))
    if reference and shown.measured:
        parts.append(printable(f"[{reference}]: published, {shown.suite.published_source}"))
    parts += [part for part in ("\n".join(lines) for lines in _notes(shown)) if part]
    return "\n\n".join(parts)


def _block(shown: SuiteTable, columns: Mapping[str, Values]) -> str:
    alone = shown.models[0] if len(shown.models) == 1 else None
    widest = (FOR_VALUES - (FOR_INTERVAL if alone else 0)) // len(columns) - 2
    heads = [
        f"[{_head(name.removesuffix(PUBLISHED), widest - 2)}]" if name.endswith(PUBLISHED) else _head(name, widest)
        for name in columns
    ]
    rows = [["data set", "measure", *heads, *(["95 %", "chance"] if alone else [])]]
    for each in shown.measured:
        values = [as_percent(values.get(each.name)) for values in columns.values()]
        if alone:
            cell = shown.cells[each.name][alone]
            values += [percent_range(*cell["interval"]), as_percent(shown.chance(each))]
        rows.append([each.title, MEASURES[each.metric].title, *values])
    for group, names in shown.groups.items():
        values = [as_percent(shown.average(values, group)) for values in columns.values()]
        rows.append(["average" if group == ALL else group, f"of {len(names)}", *values, *([""] * 2 if alone else [])])
    return table(rows, align="<<" + ">" * (len(rows[0]) - 2))


def _head(name: str, width: int) -> str:
    """The name of a model, cut in the middle: names of one experiment begin alike, those of checkpoints end alike."""
    name = printable(name)
    if columns_of(name) <= width:
        return name
    end = (width - 1) // 2
    return fit(name, width - end) + name[-end:]


def wrapped(text: str) -> str:
    """The text in lines of at most 80 columns, the later ones indented; paths and commands stay whole."""
    return textwrap.fill(text, 80, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def _notes(shown: SuiteTable) -> Iterator[list[str]]:
    yield [
        wrapped(printable(f"{each.title}: {models + ' ' if models else ''}failed: {reason}"))
        for each, models, reason in shown.failed
    ]
    yield [wrapped(printable(line)) for line in counts_that_differ(shown)]
    if shown.missing:
        download = DOWNLOAD.format(hub="REPOSITORY", name="NAME")
        rows = [[each.name, each.hub or where_to_get(each)] for each in shown.missing]
        width = max(len(name) for name, _ in rows)
        yield [
            f"{counted(len(shown.missing), 'data set')} not there:",
            *(wrapped(f"{printable(name):{width}}  {printable(where)}") for name, where in rows),
            *([f"with {download}"] if any(each.hub for each in shown.missing) else []),
        ]


def where_to_get(missing: SuiteDataSet) -> str:
    """How to get a data set that is not there, or where its folder is looked for if the suite does not say it."""
    return missing.where_to_get or f"give --data DIR with a folder {missing.name}"


def counts_that_differ(shown: SuiteTable) -> Iterator[str]:
    """Lines for each data set that differs from the published test set in size, classes or their names."""
    for each in shown.measured:
        cell = next(cell for cell in shown.cells[each.name].values() if "value" in cell)
        found = {"pictures": cell["pictures"] + cell["rejected"], "classes": cell["classes"]}
        expected = {"pictures": each.pictures, "classes": each.classes}
        differ = [unit for unit in found if expected[unit] and found[unit] not in (0, expected[unit])]
        if differ:
            has = " and ".join(f"{found[unit]:,} {unit} instead of {expected[unit]:,}" for unit in differ)
            yield f"{each.title}: {has}"
        if cell.get("prompts_from") == LABELS:
            yield f"{each.title}: the labels of the pictures are used as class names"
        if cell["rejected"]:
            yield f"{each.title}: {counted(cell['rejected'], 'picture')} could not be decoded and are not counted"


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
    """A line for each data set and each average; values are shares, empty where there is none."""
    columns = shown.columns()
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["data_set", "title", "group", "metric", "chance", *columns])
    for each in shown.measured:
        values = [v.get(each.name, "") for v in columns.values()]
        chance = shown.chance(each)
        about = [each.name, each.title, each.group, each.metric, "" if chance is None else chance]
        writer.writerow([*about, *values])
    for group in shown.groups:
        averages = [shown.average(values, group) for values in columns.values()]
        writer.writerow(["average", "", group, "", "", *("" if each is None else each for each in averages)])
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


def as_percent(share: float | None) -> str:
    """Per cent without the sign; `-` if it is not known."""
    return "-" if share is None else f"{100 * share:.1f}"
