"""The table of a suite as a page."""

from __future__ import annotations

from diptych.evaluation.suites.measures import MEASURES
from diptych.evaluation.suites.table import PUBLISHED, SuiteTable, counts_that_differ, where_to_get
from diptych.pages.template import template


def as_page(shown: SuiteTable, reference: str | None) -> str:
    """An HTML page of the table, which loads nothing."""
    columns = shown.columns()
    return template("diptych.evaluation.suites", "suite.html.jinja").render(
        title=shown.suite.title,
        shown=shown,
        measures=MEASURES,
        own={name: columns[name] for name in shown.models},
        published={model: columns[f"{model}{PUBLISHED}"] for model in shown.suite.published_models},
        reference=reference,
        best={
            each.name: max(value for model in shown.models if (value := shown.value(each.name, model)) is not None)
            for each in shown.measured
        },
        where_to_get=where_to_get,
        notes=list(counts_that_differ(shown)),
    )
