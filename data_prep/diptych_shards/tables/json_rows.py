"""Rows of JSON Lines, and of JSON files that are one list of rows or one object of columns."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from diptych_shards.tables.columns import TableError
from diptych_shards.tables.delimited import MAX_LINE_CHARS, Malformed
from diptych_shards.tables.locations import TableFile


def read_objects(file: TableFile, malformed: Malformed) -> Iterator[dict[str, Any]]:
    """Each row; a line that is no JSON object costs that line."""
    with file.open_text() as text:
        number = 0
        while line := text.readline(MAX_LINE_CHARS):
            number += 1
            where = f"{file.shown}, line {number}"
            if len(line) == MAX_LINE_CHARS and not line.endswith("\n"):
                if number == 1 and file.format == "json":
                    yield from _whole(file)
                    return
                malformed.add("line too long", where)
                while (rest := text.readline(MAX_LINE_CHARS)) and not rest.endswith("\n"):
                    pass
                continue
            if line.isspace():
                continue
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                value = None
            if file.format == "json" and number == 1 and not _is_row(value):
                yield from _whole(file)
                return
            if isinstance(value, dict):
                yield value
            else:
                malformed.add("not a JSON object", where)


def _is_row(value: Any) -> bool:
    return isinstance(value, dict) and not all(isinstance(part, list | dict) for part in value.values())


def _whole(file: TableFile) -> Iterator[dict[str, Any]]:
    """The rows of a file that is one JSON value: [{url, …}, …], {"url": [...], …} or pandas' {"url": {"0": …}, …}."""
    with file.open_text() as text:
        try:
            value = json.load(text)
        except (ValueError, RecursionError) as error:
            raise TableError(f"{file.shown} is neither JSON Lines nor one JSON value ({error})") from error
    if isinstance(value, list):
        yield from (row for row in value if isinstance(row, dict))
        return
    if isinstance(value, dict):
        columns = [list(part.values()) if isinstance(part, dict) else part for part in value.values()]
        if all(isinstance(column, list) and len(column) == len(columns[0]) for column in columns):
            yield from (dict(zip(value, row, strict=True)) for row in zip(*columns, strict=True))
            return
    raise TableError(f"{file.shown} must be JSON Lines, a list of objects, or an object of columns of one length")
