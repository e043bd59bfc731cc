"""Templates of pages that load nothing, run nothing, and show strangers' words as words."""

from __future__ import annotations

import jinja2

from diptych_shards.report.visible import visible


def template(path: str) -> jinja2.Template:
    """One of this package's, with the filters text, percent and number."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("diptych_shards", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(text=visible, percent=_percent, number="{:,}".format)
    return environment.get_template(path)


def _percent(part: int, whole: int) -> str:
    """A share that shows neither none as some nor all as less."""
    share = 100 * part / max(whole, 1)
    if part == 0 or part == whole:
        return f"{share:.0f}\u202f%"
    if share < 0.01:
        return "<\u202f0.01\u202f%"
    return f"{share:.2f}\u202f%" if share < 1 or share > 99 else f"{share:.1f}\u202f%"
