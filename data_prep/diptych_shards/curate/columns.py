"""The one column of a table that is its url, its caption, its text."""

from __future__ import annotations

from collections.abc import Sequence

from diptych.terminal import shown, unknown_word
from diptych_shards.curate.options import CurateError
from diptych_shards.tables.columns import find_column


def wanted_column(kind: str, given: str | None, usual: Sequence[str], texts: Sequence[str], path: object) -> str:
    """Its name. given: what the user says; usual: names in lower case, tried otherwise; texts: columns of text.

    Raises:
        ValueError: there is none, or more than one.
    """
    table = shown(path)
    if given is not None and given.strip().lower() not in [name.strip().lower() for name in texts]:
        raise CurateError(f"{table}: {unknown_word('column of text', given, texts)}")
    found = find_column(kind, given, usual, texts, table)
    if found is None:
        raise CurateError(f"{table} has no column of text that could be the {kind}; name it with --{kind}-column. "
                          f"Its columns of text: {', '.join(map(shown, texts)) or 'none'}")  # fmt: skip
    return found
