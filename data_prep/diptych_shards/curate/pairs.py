"""Read tables of pairs piece by piece."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow
from pyarrow import parquet

from diptych.terminal import shown, unknown_word
from diptych_shards.curate.options import CurateError
from diptych_shards.tables.columns import CAPTION_COLUMNS, URL_COLUMNS, find_column, not_parquet

ROWS_PER_UNIT = 131_072
ROWS_AT_ONCE = 8_192
SIZE_COLUMNS = (("width", "height"), ("original_width", "original_height"))
"""The columns of a picture's size in tables of extract, LAION and COYO, and of DataComp; in any case."""
_LARGEST_SIDE = 65_535
_WAY_OUT = "leave it out, or write it again"


@dataclass(frozen=True)
class Unit:
    """Some row groups of a file that are read and decided about together."""

    number: int
    path: Path
    row_groups: tuple[int, ...]
    num_rows: int


@dataclass(frozen=True)
class Pairs:
    """All tables as one."""

    units: tuple[Unit, ...]
    schema: pyarrow.Schema
    url: str
    caption: str
    sides: tuple[str, ...]
    """The columns of the picture's width and height; empty if there are none."""
    files: tuple[tuple[str, int, int], ...]
    """The name, bytes and time of change of each."""

    @property
    def num_rows(self) -> int:
        return sum(unit.num_rows for unit in self.units)


def open_pairs(paths: Sequence[Path], url_column: str | None, caption_column: str | None) -> Pairs:
    """Find the tables, and their columns.

    Raises:
        CurateError: there are none, one cannot be read, or they do not fit together.
    """
    units: list[Unit] = []
    schema: pyarrow.Schema | None = None
    files = []
    for path in _tables(paths):
        with _open(path) as file:
            schema = _joined(schema, file.schema_arrow, path)
            units += _units(path, file.metadata, len(units))
        status = path.stat()
        files.append((path.name, status.st_size, status.st_mtime_ns))
    if not units or schema is None:
        raise CurateError(f"{shown(paths[0])} holds no pairs")
    texts = [field.name for field in schema if is_text(field.type)]
    url = wanted_column("url", url_column, URL_COLUMNS, texts, paths[0])
    caption = wanted_column("caption", caption_column, CAPTION_COLUMNS, texts, paths[0])
    return Pairs(tuple(units), schema, url, caption, _sides(schema), tuple(files))


class Rows(NamedTuple):
    """Some of a unit's pairs, as the table gives them."""

    urls: list[str]
    """"" if there is none, U+FFFD for bytes that are not UTF-8; the same for captions."""
    captions: list[str]
    areas: list[int]
    """Pixels, as the table gives them: of a square if only one side is known, 0 if none is."""


def read_pairs(unit: Unit, url: str, caption: str, sides: Sequence[str]) -> Iterator[Rows]:
    """Read the pairs of a unit, some rows at a time."""
    for batch in _batches(unit, [url, caption, *sides]):
        areas = _areas([batch.column(side) for side in sides], len(batch))
        yield Rows(_texts(batch.column(url)), _texts(batch.column(caption)), areas)


def read_rows(unit: Unit, schema: pyarrow.Schema) -> Iterator[pyarrow.Table]:
    """Read all columns that any of the tables has, some rows at a time."""
    for batch in _batches(unit, None):
        table = pyarrow.Table.from_batches([batch])
        columns = [
            table.column(field.name).cast(field.type)
            if field.name in table.schema.names
            else pyarrow.nulls(len(table), field.type)
            for field in schema
        ]
        yield pyarrow.Table.from_arrays(columns, schema=schema)


def texts_of(table: pyarrow.Table, name: str) -> list[str]:
    """A column as `read_pairs` gives it."""
    return _texts(table.column(name))


def wanted_column(kind: str, given: str | None, usual: Sequence[str], texts: Sequence[str], path: object) -> str:
    """Find the one column of text that is the url, the caption or the text.

    given: the name that the user gives; None: one of the `usual` names, in lower case, is sought among `texts`.

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


def _sides(schema: pyarrow.Schema) -> tuple[str, ...]:
    """The columns of width and height: the first of the usual pairs of names whose columns both hold numbers."""
    types = pyarrow.types
    numbers = {
        field.name.lower(): field.name
        for field in schema
        if types.is_integer(field.type) or types.is_floating(field.type)
    }
    for names in SIZE_COLUMNS:
        if all(name in numbers for name in names):
            return tuple(numbers[name] for name in names)
    return ()


def _areas(sides: Sequence[pyarrow.Array], num_rows: int) -> list[int]:
    if not sides:
        return [0] * num_rows
    known = []
    for side in sides:
        numbers = side.cast(pyarrow.float64(), safe=False).to_numpy(zero_copy_only=False)
        known.append(np.nan_to_num(numbers).clip(0, _LARGEST_SIDE))
    one, other = known
    areas: list[int] = (np.where(one > 0, one, other) * np.where(other > 0, other, one)).astype(np.int64).tolist()
    return areas


def _tables(paths: Sequence[Path]) -> list[Path]:
    """The files in the order given, those of a folder by name."""
    tables = []
    for path in paths:
        if path.is_dir():
            inside = sorted(
                path / name for name in os.listdir(path) if name.endswith(".parquet") and (path / name).is_file()
            )
            if not inside:
                raise CurateError(
                    f"{shown(path)} has no .parquet file; name what extract wrote, or other tables of pairs"
                )
            tables += inside
        elif path.exists():
            tables.append(path)
        else:
            raise CurateError(f"{shown(path)} does not exist; expected .parquet files, or folders of them")
    return tables


def _open(path: Path) -> parquet.ParquetFile:
    try:
        return parquet.ParquetFile(path, pre_buffer=False)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        is_another = path.suffix != ".parquet"
        way_out = "curate reads parquet, such as extract writes" if is_another else _WAY_OUT
        raise CurateError(not_parquet(path, error, way_out)) from error


def _units(path: Path, metadata: Any, first_number: int) -> list[Unit]:
    """Join neighbouring row groups as long as they are small."""
    units: list[Unit] = []
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group).num_rows
        if units and units[-1].num_rows + rows <= ROWS_PER_UNIT:
            last = units.pop()
            units.append(Unit(last.number, path, (*last.row_groups, group), last.num_rows + rows))
        elif rows:
            units.append(Unit(first_number + len(units), path, (group,), rows))
    return units


def _joined(schema: pyarrow.Schema | None, other: pyarrow.Schema, path: Path) -> pyarrow.Schema:
    other = pyarrow.schema([field.with_type(_without_views(field.type)) for field in other])
    repeated = [name for name in other.names if other.names.count(name) > 1]
    if repeated:
        raise CurateError(f"{shown(path)} has several columns called {shown(repeated[0])!r}")
    if schema is None or schema == other:
        return other
    try:
        return pyarrow.unify_schemas([schema, other], promote_options="permissive")
    except (pyarrow.ArrowException, ValueError) as error:
        raise CurateError(f"{shown(path)}: its columns do not fit those before ({shown(error)})") from error


def _without_views(kind: pyarrow.DataType) -> pyarrow.DataType:
    """The type with plain texts, bytes and lists in place of Arrow's views, from which `take` cannot choose rows."""
    types = pyarrow.types
    if types.is_string_view(kind):
        return pyarrow.large_string()
    if types.is_binary_view(kind):
        return pyarrow.large_binary()
    if types.is_dictionary(kind):
        return pyarrow.dictionary(kind.index_type, _without_views(kind.value_type), kind.ordered)
    if types.is_struct(kind):
        return pyarrow.struct([field.with_type(_without_views(field.type)) for field in kind])
    if types.is_map(kind):
        return pyarrow.map_(_without_views(kind.key_type), _without_views(kind.item_type))
    if types.is_list(kind):
        return pyarrow.list_(_without_views(kind.value_type))
    if types.is_large_list(kind) or types.is_list_view(kind) or types.is_large_list_view(kind):
        return pyarrow.large_list(_without_views(kind.value_type))
    return kind


def _batches(unit: Unit, columns: list[str] | None) -> Iterator[pyarrow.RecordBatch]:
    with _open(unit.path) as file:
        there = columns and [name for name in columns if name in file.schema_arrow.names]
        try:
            for batch in file.iter_batches(
                ROWS_AT_ONCE, row_groups=list(unit.row_groups), columns=there, use_threads=False
            ):
                for name in set(columns or ()) - set(batch.schema.names):
                    batch = batch.append_column(name, pyarrow.nulls(len(batch), pyarrow.string()))
                yield batch
        except (pyarrow.ArrowException, OSError) as error:
            raise CurateError(f"{shown(unit.path)}: damaged ({shown(error)}); {_WAY_OUT}") from error


def is_text(kind: pyarrow.DataType) -> bool:
    types = pyarrow.types
    if types.is_dictionary(kind):
        kind = kind.value_type
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _texts(column: pyarrow.Array | pyarrow.ChunkedArray) -> list[str]:
    # Decoded here, not by Arrow: one caption that is not UTF-8 must not stop the run.
    values = column.cast(pyarrow.large_string()).cast(pyarrow.large_binary()).to_pylist()
    return ["" if value is None else value.decode("utf-8", "replace") for value in values]
