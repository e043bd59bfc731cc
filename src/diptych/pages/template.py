"""Templates of pages that load nothing, run nothing, and show untrusted text as plain text."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from datetime import datetime, timezone
from functools import cache

import jinja2

from diptych import terminal
from diptych.terminal import counted

_PICTURES = {"\n": "↵", "\t": "⇥"}
_JOINERS = "\u200c\u200d"
"""Emoji and several scripts need them; they do not affect other text."""


@cache  # Jinja takes a tenth of a second to compile a page
def template(package: str, path: str, **filters: Callable[..., str]) -> jinja2.Template:
    """A package's template, which may extend `page.html.jinja` of this folder.

    filters: added to text, percent, number and counted, or used in their place.
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


def visible(text: object, length: int | None = None) -> str:
    """The text on one line, cut to `length` characters.

    A line end becomes ↵, a tab ⇥; other control characters, bidirectional ones, lone surrogates and all else that
    is invisible become ⟨U+202E⟩.
    """
    string = str(text)
    cut = string if length is None or len(string) <= length else f"{string[: length - 1]}…"
    return cut if cut.isprintable() else "".join(map(_visible, cut))


def percent(part: float | None, whole: float = 1) -> str:
    """A share as `terminal.percent` writes it, with narrow spaces at which no line breaks."""
    return terminal.percent(part, whole).replace(" ", "\u202f")


def day(seconds: float) -> str:
    """The day of a time in seconds since 1970, in UTC: `29 November 2026`."""
    moment = datetime.fromtimestamp(seconds, timezone.utc)
    return f"{moment.day} {moment:%B %Y}"


def _visible(char: str) -> str:
    if char.isprintable() or char in _JOINERS or unicodedata.category(char) == "Zs":
        return char
    return _PICTURES.get(char) or f"⟨U+{ord(char):04X}⟩"
