"""Read tables of pictures on this machine: a path and a caption or a label in each row."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow
import pyarrow.types as kinds

from diptych.data.picture_formats import PICTURE_ENDINGS
from diptych.remote_files import is_remote
from diptych.terminal import printable, shown
from diptych_shards.tables.column_types import is_text, stored_type
from diptych_shards.tables.columns import PATH_COLUMNS, TableError, find_caption, find_column, list_columns
from diptych_shards.tables.delimited import Malformed
from diptych_shards.tables.file_readers import FileReader, open_reader
from diptych_shards.tables.locations import PICTURE_TABLE_SUFFIXES, TableFile, is_picture_table, not_a_table, table_file


@dataclass(frozen=True)
class PictureRow:
    """A row of the table, unchanged."""

    place: str
    """`line 7` of text, `row 7` of parquet and JSON."""
    path: str
    value: Any
    """The caption or label."""
    extra: dict[str, Any]
    """The other columns."""


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be read."""

    place: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The columns that the user names; a column that is None is found by its name."""

    path: str | None = None
    caption: str | None = None
    label: str | None = None
    """If given, the value of a row is in this column, and no column of captions is needed."""
    option: str = "--caption-column"
    """The option of the command that names the column of the caption."""


@dataclass
class _Listed(Malformed):
    """Every bad row with its place, not only their number."""

    rows: list[BadRow] = field(default_factory=list)

    def add(self, reason: str, where: str) -> None:
        self.rows.append(BadRow(where.rpartition(", ")[2], reason))


def read_picture_table(location: str, wanted: Wanted) -> Iterator[PictureRow | BadRow]:
    """Yield the rows of the table in their order.

    Raises:
        TableError: it does not exist, cannot be read, or its columns are not known; raised before the first row.
    """
    file = _file(location)
    reader = open_reader(file, Malformed(), is_first=True)
    path, value = _columns(file, reader, wanted)
    return _rows(file, reader, path, value)


def _file(location: str) -> TableFile:
    if is_remote(location):
        raise TableError(f"{shown(location)}: a table and its pictures must be on this machine; download both")
    if not os.path.exists(location):
        raise TableError(f"{shown(location)} does not exist; expected a table ({', '.join(PICTURE_TABLE_SUFFIXES)})")
    if not is_picture_table(location):
        raise not_a_table(location, PICTURE_TABLE_SUFFIXES)
    return table_file(location)


def _columns(file: TableFile, reader: FileReader, wanted: Wanted) -> tuple[str, str]:
    names, table = reader.schema.names, file.shown
    # If several columns fit, the plain word wins: `path` over `filename`, `caption` over `text`.
    path = find_column("path", wanted.path or ("path" if "path" in names else None), PATH_COLUMNS, names, table)
    if path is None:
        hint = "its first line is not a header; " if any(n.lower().endswith(PICTURE_ENDINGS) for n in names) else ""
        raise TableError(f"{table} has no column that could be the path; {hint}call it path, or name it with "
                         f"--path-column if there is one. {list_columns(names)}")  # fmt: skip
    if wanted.label is not None:
        value = find_column("label", wanted.label, (), names, table, "--label-key")
    else:
        given = wanted.caption or ("caption" if "caption" in names else None)
        value = find_caption(given, names, table, wanted.option)
    if value is None:
        raise TableError(f"{table} has no column that could be the caption; name it with {wanted.option}. "
                         f"{list_columns(names)}")  # fmt: skip
    if value == path:
        raise TableError(f"{table}: column {shown(path)!r} cannot be both the path and the caption or label")
    kind = stored_type(reader.schema.field(path).type)
    if file.format == "parquet" and not (is_text(kind) or kinds.is_null(kind)):
        raise TableError(f"{table}: column {shown(path)!r} holds {_short(kind)}, not paths of picture files")
    return path, value


def _short(kind: pyarrow.DataType) -> str:
    return "pictures themselves, or what belongs to them" if kinds.is_nested(kind) else str(kind)


def _rows(file: TableFile, reader: FileReader, path: str, value: str) -> Iterator[PictureRow | BadRow]:
    bad = _Listed()
    word = "row" if file.format in ("parquet", "json") else "line"
    for number, row in reader.rows(bad):
        yield from bad.rows
        bad.rows.clear()
        place = f"{word} {number}"
        name = row.pop(path, None)
        if isinstance(name, str) and name.strip() and "\0" not in name:
            yield PictureRow(place, name, row.pop(value, None), row)
        else:
            yield BadRow(
                place, "no path" if name is None or name == "" else f"its path is {printable(str(name), 80)!r}"
            )
    yield from bad.rows
