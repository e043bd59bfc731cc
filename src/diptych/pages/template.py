"""Templates of pages that load nothing, run nothing, and show strangers' words as words."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone

import jinja2

from diptych.pages.visible import visible
from diptych.terminal import counted


def template(package: str, path: str, **filters: Callable[..., str]) -> jinja2.Template:
    """A package's template, which may extend `page.html.jinja` of this folder.

    filters: besides text, percent, number and counted, or in their place.
    """
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader("diptych.pages", ""), jinja2.PackageLoader(package, "")]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(text=visible, percent=percent, number="{:,}".format, counted=counted)
    environment.filters.update(filters)
    return environment.get_template(path)


def percent(part: float | None, whole: float = 1) -> str:
    """A share that shows neither none as some nor all as less; `-` for a number that there is not."""
    if part is None:
        return "-"
    share = 100 * part / (whole or 1)
    if part == 0 or part == whole:
        return f"{share:.0f}\u202f%"
    if share < 0.01:
        return "<\u202f0.01\u202f%"
    return f"{share:.2f}\u202f%" if share < 1 or share > 99 else f"{share:.1f}\u202f%"


def day(seconds: float) -> str:
    """The day of a time in seconds since 1970, in UTC: `29 November 2026`."""
    moment = datetime.fromtimestamp(seconds, timezone.utc)
    return f"{moment.day} {moment:%B %Y}"
