"""Read the files of a table, each cut into shards by itself, with at most a shard of rows in memory."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from operator import itemgetter
from typing import Any, Protocol

import numpy as np
import pyarrow
import pyarrow.parquet
import xxhash

from diptych.terminal import shown
from diptych_shards.tables.column_types import (
    array_of_texts,
    array_of_values,
    as_values,
    type_of_texts,
    type_of_values,
)
from diptych_shards.tables.columns import TableError, not_parquet
from diptych_shards.tables.delimited import Malformed, find_layout, read_rows
from diptych_shards.tables.json_rows import read_objects
from diptych_shards.tables.locations import TableFile
from diptych_shards.tables.subset import Subset

HEAD_ROWS = 10_000
"""Rows at the start of a text file that decide the types of its columns."""
_BATCH_ROWS = 10_000
_BATCH_LINES = 1_000
_FOOTER_END = 8

Shards = Generator[tuple[int, pyarrow.Table], None, int]
"""Numbered shards; the generator returns the number of the next file's first shard."""


class FileReader(Protocol):
    """Reads one file of a table."""

    file: TableFile
    schema: pyarrow.Schema
    num_rows: int | None
    has_header: bool
    identity: str

    def rows(self, malformed: Malformed) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the number and the values of each row as they are in the file: all texts in CSV.

        The number is that of the row, in text files that of its first line.
        """

    def shards(
        self, first: int, rows_per_shard: int, skip: Callable[[int], bool], schema: pyarrow.Schema, choice: Choice
    ) -> Shards:
        """Yield the shards that are not skipped; their rows have those columns of `schema` that are in the file."""


class Choice:
    """Which rows are wanted (all, or those of a subset), and which columns the table has."""

    def __init__(self, subset: Subset | None = None, uid: str = "", names: Sequence[str] = ()):
        self.subset = subset
        self.uid = uid
        self.names = names
        self.caption: str | None = None
        """The column that must be text in each row."""

    def of(self, uids: pyarrow.Array) -> np.ndarray:
        assert self.subset is not None
        return self.subset.contains(uids)


class ParquetReader:
    """Reads a parquet file; row groups without a wanted row are not decoded."""

    has_header = False

    def __init__(self, file: TableFile):
        self.file = file
        with file.open() as stream:
            try:
                opened = pyarrow.parquet.ParquetFile(stream)
                metadata = opened.metadata
                self.schema = opened.schema_arrow.remove_metadata()
            except file.errors as error:
                raise TableError(not_parquet(file.shown, error)) from error
            stream.seek(-(metadata.serialized_size + _FOOTER_END), 2)
            footer = xxhash.xxh3_128_hexdigest(stream.read())
        repeated = next((name for name in self.schema.names if self.schema.names.count(name) > 1), None)
        if repeated is not None:
            raise TableError(f"{file.shown} has several columns named {shown(repeated)!r}")
        self._total: int = metadata.num_rows
        self.num_rows: int | None = self._total
        self.identity = f"{file.name}\n{file.num_bytes}\n{footer}"

    def rows(self, malformed: Malformed) -> Iterator[tuple[int, dict[str, Any]]]:
        number = 0
        with self._open() as file:
            for group in range(file.metadata.num_row_groups):
                for batch in self._batches(file, group, self.schema.names):
                    columns = [as_values(column) for column in pyarrow.Table.from_batches([batch]).columns]
                    for values in zip(*columns, strict=True):
                        number += 1
                        yield number, dict(zip(self.schema.names, values, strict=True))

    def shards(
        self, first: int, rows_per_shard: int, skip: Callable[[int], bool], schema: pyarrow.Schema, choice: Choice
    ) -> Shards:
        places = None if choice.subset is None else self._places(choice)
        total = self._total if places is None else len(places)
        is_wanted = [not skip(first + number) for number in range(-(-total // rows_per_shard))]
        if any(is_wanted):
            names = [name for name in self.schema.names if name in schema.names]
            yield from _cut(self._wanted(is_wanted, rows_per_shard, places, names), first, rows_per_shard, total)
        return first + len(is_wanted)

    def _wanted(
        self, is_wanted: Sequence[bool], rows_per_shard: int, places: np.ndarray | None, names: list[str]
    ) -> Iterator[tuple[int, pyarrow.Table]]:
        """Yield pieces within one wanted shard each, after the rank of their first row among the chosen ones."""

        def rank(row: int) -> int:
            return row if places is None else int(np.searchsorted(places, row))

        start = 0
        with self._open() as file:
            for group in range(file.metadata.num_row_groups):
                end = start + file.metadata.row_group(group).num_rows
                shards = range(rank(start) // rows_per_shard, -(-rank(end) // rows_per_shard))
                needed = [shard for shard in shards if rank(start) < rank(end) and is_wanted[shard]]
                if not needed:
                    start = end
                    continue
                row = start
                for batch in self._batches(file, group, names):
                    low, high = rank(row), rank(row + len(batch))
                    if low >= (needed[-1] + 1) * rows_per_shard:
                        break
                    rows = pyarrow.Table.from_batches([batch])
                    if places is not None:
                        rows = rows.take(places[low:high] - row)
                    row += len(batch)
                    while low < high:
                        edge = min(high, (low // rows_per_shard + 1) * rows_per_shard)
                        if is_wanted[low // rows_per_shard]:
                            yield low, rows.slice(0, edge - low)
                        rows, low = rows.slice(edge - low), edge
                start = end

    def _places(self, choice: Choice) -> np.ndarray:
        """Find the rows of the subset by reading one column."""
        with self._open() as file:
            found = [
                choice.of(batch.column(0))
                for group in range(file.metadata.num_row_groups)
                for batch in self._batches(file, group, [choice.uid])
            ]
        return np.flatnonzero(np.concatenate(found)) if found else np.zeros(0, np.int64)

    @contextmanager
    def _open(self) -> Iterator[pyarrow.parquet.ParquetFile]:
        # Buffered: a row group of millions of rows is read in small pieces.
        with self.file.open() as stream, pyarrow.parquet.ParquetFile(stream, buffer_size=1 << 20) as file:
            yield file

    def _batches(
        self, file: pyarrow.parquet.ParquetFile, group: int, names: list[str]
    ) -> Iterator[pyarrow.RecordBatch]:
        try:
            yield from file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=names, use_threads=False)
        except self.file.errors as error:
            raise TableError(f"{self.file.shown} is damaged in row group {group}: {shown(error)}") from error


class TextReader:
    """Reads a CSV, TSV, JSON or text file line by line from its start; skipped rows do not become columns."""

    num_rows: int | None = None

    def __init__(self, file: TableFile, malformed: Malformed, *, is_first: bool):
        """is_first: whether this file decides the types of the columns."""
        self.file = file
        self._malformed = malformed
        self._layout = None if file.format in ("json", "jsonl") else find_layout(file)
        if self._layout is not None:
            _check_names(file, self._layout.names)
        self.has_header = self._layout is not None and self._layout.has_header
        if self._layout is not None and self._layout.first_line > 1:
            header = (self._layout.delimiter or "").join(self._layout.names)
            malformed.add("blank lines before the header", f"{file.shown}, which is then {header}")
        self.identity = file.identity
        if is_first or self._layout is None:
            self.schema = self._look(is_first=is_first)
        else:
            self.schema = pyarrow.schema([(name, pyarrow.string()) for name in self._layout.names])

    def shards(
        self, first: int, rows_per_shard: int, skip: Callable[[int], bool], schema: pyarrow.Schema, choice: Choice
    ) -> Shards:
        number = first
        rows_of_file = self._rows(self._malformed)
        if self._layout is None and choice.caption is not None:
            rows_of_file = self._captioned(rows_of_file, choice.caption)
        chosen: Iterator[Any] = map(itemgetter(1), rows_of_file)
        if choice.subset is not None:
            chosen = self._chosen(chosen, choice)
        while True:
            if skip(number):
                rows: list[Any] = []
                num_rows = sum(1 for _ in islice(chosen, rows_per_shard))
            else:
                rows = list(islice(chosen, rows_per_shard))
                num_rows = len(rows)
            if rows:
                yield number, self._table(rows, schema, choice)
            if num_rows:
                number += 1
            if num_rows < rows_per_shard:
                return number

    def rows(self, malformed: Malformed) -> Iterator[tuple[int, dict[str, Any]]]:
        if self._layout is None:
            yield from read_objects(self.file, malformed)
            return
        names = self._layout.names
        for number, row in read_rows(self.file, self._layout, malformed):
            yield number, dict(zip(names, row, strict=True))

    def _rows(self, malformed: Malformed) -> Iterator[tuple[int, Any]]:
        if self._layout is None:
            return read_objects(self.file, malformed)
        return read_rows(self.file, self._layout, malformed)

    def _look(self, *, is_first: bool) -> pyarrow.Schema:
        malformed = Malformed()
        rows = map(itemgetter(1), self._rows(malformed))
        head: list[Any] = list(islice(rows, HEAD_ROWS if is_first else 1))
        if self._layout is not None:
            columns = zip(*head, strict=True) if head else [()] * len(self._layout.names)
            kinds = map(type_of_texts, columns)
            return pyarrow.schema(list(zip(self._layout.names, kinds, strict=True)))
        if not head and is_first:
            why = "no line that is a JSON object" if malformed.counts else "no rows, and so no columns"
            raise TableError(f"{self.file.shown} has {why}")
        names = list(dict.fromkeys(name for row in head for name in row))
        return pyarrow.schema([(name, type_of_values([row.get(name) for row in head])) for name in names])

    def _captioned(self, rows: Iterator[tuple[int, Any]], caption: str) -> Iterator[tuple[int, Any]]:
        """Leave out rows whose caption is a list, an object, a number or NaN: the JSON of these is not a caption."""
        for number, row in rows:
            value = row.get(caption)
            if value is None or isinstance(value, str):
                yield number, row
            else:
                why = f"column {shown(caption)} is {type(value).__name__}, not text"
                self._malformed.add(why, f"{self.file.shown}, line {number}")

    def _chosen(self, rows: Iterator[Any], choice: Choice) -> Iterator[Any]:
        while block := list(islice(rows, _BATCH_LINES)):
            uids = self._values(block, choice.uid)
            is_chosen = choice.of(pyarrow.array([uid if isinstance(uid, str) else None for uid in uids]))
            yield from (row for row, is_in in zip(block, is_chosen, strict=True) if is_in)

    def _values(self, rows: Iterable[Any], name: str) -> list[Any]:
        if self._layout is None:
            return [row.get(name) for row in rows]
        place = self._layout.names.index(name)
        return [row[place] for row in rows]

    def _table(self, rows: list[Any], schema: pyarrow.Schema, choice: Choice) -> pyarrow.Table:
        make = array_of_values if self._layout is None else array_of_texts
        there = None if self._layout is None else set(self._layout.names)
        if there is None:
            self._note_unknown(rows, choice.names)
        arrays = {
            field.name: make(self._values(rows, field.name), field.type, self._note_misfit(field))
            for field in schema
            if there is None or field.name in there
        }
        return pyarrow.table(arrays)

    def _note_unknown(self, rows: list[dict[str, Any]], names: Sequence[str]) -> None:
        for name in sorted(set[str]().union(*rows).difference(names)):
            self._malformed.counts[f"column {shown(name)} starts after the first {HEAD_ROWS} rows; left out"] += sum(
                name in row for row in rows
            )

    def _note_misfit(self, field: pyarrow.Field) -> Callable[[], None]:
        reason = f"column {shown(field.name)} is not {field.type}"
        return lambda: self._malformed.add(reason, self.file.shown)


def _check_names(file: TableFile, names: Sequence[str]) -> None:
    """Check that the names of the columns are UTF-8.

    Raises:
        TableError: a name is not UTF-8.
    """
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise TableError(f"{file.shown}: the name of a column, {shown(name[:40])}, is not UTF-8; "
                             f"save the table as UTF-8") from None  # fmt: skip


def open_reader(file: TableFile, malformed: Malformed, *, is_first: bool) -> FileReader:
    if file.format == "parquet":
        return ParquetReader(file)
    return TextReader(file, malformed, is_first=is_first)


def _cut(
    pieces: Iterable[tuple[int, pyarrow.Table]], first: int, rows_per_shard: int, total: int
) -> Iterator[tuple[int, pyarrow.Table]]:
    """Join pieces, in their order, to whole shards."""
    parts: list[pyarrow.Table] = []
    for rank, piece in pieces:
        parts.append(piece)
        end = rank + piece.num_rows
        if end % rows_per_shard == 0 or end == total:
            yield first + rank // rows_per_shard, pyarrow.concat_tables(parts)
            parts = []
