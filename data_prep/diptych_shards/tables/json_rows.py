"""Read rows of JSON Lines, and of JSON files that are one list of rows or one object of columns."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from diptych.documents import parse_json
from diptych_shards.tables.columns import TableError
from diptych_shards.tables.delimited import MAX_LINE_CHARS, Malformed
from diptych_shards.tables.locations import TableFile

_NOT_AN_OBJECT = "not a JSON object"


def read_objects(file: TableFile, malformed: Malformed) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number and values of each row; a line that is not a JSON object, or has a key twice, is left out."""
    with file.open_text() as text:
        number = 0
        while line := text.readline(MAX_LINE_CHARS):
            number += 1
            where = f"{file.shown}, line {number}"
            if len(line) == MAX_LINE_CHARS and not line.endswith("\n"):
                if number == 1 and file.format == "json":
                    yield from _whole(file, malformed)
                    return
                malformed.add("line too long", where)
                while (rest := text.readline(MAX_LINE_CHARS)) and not rest.endswith("\n"):
                    pass
                continue
            if line.isspace():
                continue
            value, why = _parsed(line)
            if file.format == "json" and number == 1 and not _is_row(value):
                yield from _whole(file, malformed)
                return
            if isinstance(value, dict):
                yield number, value
            else:
                malformed.add(why, where)


def _parsed(line: str) -> tuple[Any, str]:
    """The value of a line, and the reason if it is not a row."""
    try:
        return parse_json(line), _NOT_AN_OBJECT
    except json.JSONDecodeError as error:
        return None, error.msg if "twice" in error.msg else _NOT_AN_OBJECT
    except (ValueError, RecursionError):
        return None, _NOT_AN_OBJECT


def _is_row(value: Any) -> bool:
    return isinstance(value, dict) and not all(isinstance(part, list | dict) for part in value.values())


def _whole(file: TableFile, malformed: Malformed) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a file that is one JSON value: [{url, …}, …], {"url": [...], …} or pandas' {"url": {"0": …}, …}."""
    with file.open_text() as text:
        try:
            value = parse_json(text.read())
        except (ValueError, RecursionError) as error:
            raise TableError(f"{file.shown} is neither JSON Lines nor one JSON value ({error})") from error
    if isinstance(value, list):
        for number, row in enumerate(value, start=1):
            if isinstance(row, dict):
                yield number, row
            else:
                malformed.add(_NOT_AN_OBJECT, f"{file.shown}, row {number}")
        return
    if isinstance(value, dict):
        columns = [list(part.values()) if isinstance(part, dict) else part for part in value.values()]
        if all(isinstance(column, list) and len(column) == len(columns[0]) for column in columns):
            rows = (dict(zip(value, row, strict=True)) for row in zip(*columns, strict=True))
            yield from enumerate(rows, start=1)
            return
    raise TableError(f"{file.shown} must be JSON Lines, a list of objects, or an object of columns of one length")
