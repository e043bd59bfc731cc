"""The table of a suite in 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping

from diptych.evaluation.suites.measures import MEASURES
from diptych.evaluation.suites.suite import ALL, DOWNLOAD
from diptych.evaluation.suites.table import PUBLISHED, SuiteTable, Values, as_percent, counts_that_differ, where_to_get
from diptych.terminal import columns as columns_of
from diptych.terminal import counted, fit, percent_range, printable, table

MODELS_AT_ONCE = 3
"""Models next to one another in 80 columns."""
FOR_VALUES = 48
"""Columns of the terminal for the values of all models; the rest is for the data set and its measure."""
FOR_INTERVAL = 18
"""Of these, for the interval and chance, which a model alone has."""


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


def wrapped(text: str) -> str:
    """The text in lines of at most 80 columns, the later ones indented; paths and commands stay whole."""
    return textwrap.fill(text, 80, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


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
