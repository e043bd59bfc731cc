"""Cut a table of URLs and captions into shards: each file by itself, numbered through all files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.types as kinds
import xxhash

from diptych.terminal import shown
from diptych_shards.tables.column_types import (
    BOXES,
    as_text,
    as_url,
    boxes,
    hashes,
    is_boxes,
    is_text,
    plain_column,
    stored_type,
    texts,
    with_valid_text,
)
from diptych_shards.tables.columns import (
    UID_COLUMNS,
    ColumnOptions,
    Columns,
    TableError,
    choose_columns,
    choose_extra,
    find_column,
)
from diptych_shards.tables.delimited import Malformed
from diptych_shards.tables.file_readers import Choice, FileReader, open_reader
from diptych_shards.tables.locations import find_table_files
from diptych_shards.tables.subset import Subset

_OPENED_AT_ONCE = 8
SPREAD_ROWS = 200_000
"""Rows that are held in memory to be spread over their shards; with all columns of a crawl's table about 100 MB."""


class Table:
    """An opened table; its rows are not in memory."""

    def __init__(self, readers: Sequence[FileReader], options: ColumnOptions, choice: Choice, malformed: Malformed):
        self._readers = readers
        self._choice = choice
        self.malformed = malformed
        """Lines that are not rows, and values that do not fit their column, as far as it was read."""
        name = readers[0].file.shown if len(readers) == 1 else f"the table ({len(readers)} files)"
        whole = _schema_of_all(readers)
        of_text = [field.name for field in whole if is_text(field.type)]
        self.columns: Columns = choose_columns(whole.names, options, name, of_text)
        self._schema = self._typed(whole, choose_extra(whole.names, self.columns, options, name), name)
        special = (self.columns.url, self.columns.caption, self.columns.hash, self.columns.boxes)
        self._as_read = pyarrow.schema(
            [field.with_type(pyarrow.string()) if field.name in special else field for field in self._schema]
        )
        for reader in readers if readers[0].file.format not in ("json", "jsonl") else ():
            for wanted in (self.columns.url, self.columns.caption):
                if wanted is not None and wanted not in reader.schema.names:
                    raise TableError(f"{reader.file.shown} has no column {shown(wanted)!r}, as other files have")
        choice.names, choice.caption = whole.names, self.columns.caption
        if choice.subset is not None:
            choice.uid = find_column("uid", None, UID_COLUMNS, whole.names, name) or ""
            if not choice.uid:
                raise TableError(f"{name} has no column uid, which a subset needs")

    @property
    def schema(self) -> pyarrow.Schema:
        """The columns and types of every shard."""
        return self._schema

    @property
    def num_rows(self) -> int | None:
        """The number of rows; None if it is only known after reading."""
        counts = [reader.num_rows for reader in self._readers]
        if self._choice.subset is not None or None in counts:
            return None
        return sum(count for count in counts if count is not None)

    @property
    def about_rows(self) -> int | None:
        """The number of rows, estimated for text files from their first lines; None for a subset or a JSON document."""
        first = self._readers[0].file
        if self._choice.subset is not None or first.format in ("parquet", "json"):
            return None
        num_bytes = sum(reader.file.num_bytes for reader in self._readers)
        return max(0, round(first.lines_per_byte() * num_bytes) - sum(reader.has_header for reader in self._readers))

    @property
    def fingerprint(self) -> str:
        """A digest that changes with the files and with the choice of columns or rows."""
        content = {
            "files": [reader.identity for reader in self._readers],
            "columns": asdict(self.columns),
            "types": [(field.name, str(field.type)) for field in self._schema],
            "subset": self._choice.subset.identity if self._choice.subset else None,
        }
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def shards(
        self, rows_per_shard: int, skip: Callable[[int], bool], *, spread: bool = False
    ) -> Iterator[tuple[int, pyarrow.Table]]:
        """Yield the number and the rows of each shard that is not skipped, in order.

        spread: order rows by a hash of their URLs, within blocks of SPREAD_ROWS consecutive rows of a file, so that the
            rows of a page or a host get into many shards. Rows with the same URL stay together. Otherwise rows have
            the order of the table.

        Raises:
            TableError: a file turns out to be damaged.
        """
        shards_per_block = max(1, SPREAD_ROWS // rows_per_shard) if spread else 1
        number = 0
        for reader in self._readers:
            first = number

            def block_of(shard: int, first: int = first) -> range:
                start = first + (shard - first) // shards_per_block * shards_per_block
                return range(start, start + shards_per_block)

            shards = reader.shards(
                first, rows_per_shard, lambda shard: all(map(skip, block_of(shard))), self._as_read, self._choice
            )
            block: dict[int, pyarrow.Table] = {}
            while True:
                try:
                    shard, rows = next(shards)
                except StopIteration as end:
                    number = end.value
                    break
                block[shard] = self._fitted(rows)
                if shard == block_of(shard)[-1]:
                    yield from self._cut(block, rows_per_shard, skip, spread=spread)
                    block = {}
            yield from self._cut(block, rows_per_shard, skip, spread=spread)

    def _cut(
        self, block: dict[int, pyarrow.Table], rows_per_shard: int, skip: Callable[[int], bool], *, spread: bool
    ) -> Iterator[tuple[int, pyarrow.Table]]:
        """Yield the shards of a block of consecutive ones that are not skipped."""
        if not block:
            return
        rows = pyarrow.concat_tables(block.values())
        if spread:
            places = [xxhash.xxh3_64_intdigest((url or "").encode()) for url in rows[self.columns.url].to_pylist()]
            rows = rows.take(np.argsort(np.array(places, np.uint64), kind="stable"))
        for turn, shard in enumerate(block):
            if not skip(shard):
                yield shard, _compact(rows.slice(turn * rows_per_shard, rows_per_shard))

    def _typed(self, whole: pyarrow.Schema, names: Sequence[str], table: str) -> pyarrow.Schema:
        columns = self.columns
        fields = []
        for name in names:
            kind = whole.field(name).type
            if name in (columns.url, columns.caption, columns.hash):
                if kinds.is_nested(kind):
                    raise TableError(f"{table}: column {shown(name)!r} holds {kind}, not text; name another column")
                kind = pyarrow.string()
            elif name == columns.boxes:
                if not (is_text(kind) or is_boxes(kind)):
                    raise TableError(
                        f"{table}: column {shown(name)!r} holds {kind}; boxes are lists of [x0, y0, x1, y1]"
                    )
                kind = BOXES
            fields.append(pyarrow.field(name, kind))
        return pyarrow.schema(fields)

    def _fitted(self, rows: pyarrow.Table) -> pyarrow.Table:
        """Give the rows the columns and types of all shards."""
        arrays = []
        for field in self._schema:
            if field.name not in rows.column_names:
                arrays.append(pyarrow.nulls(rows.num_rows, field.type))
                continue
            column = plain_column(rows[field.name])
            if field.name == self.columns.url:
                column = texts(column, self._counted(as_url, field.name))
            elif field.name == self.columns.hash:
                column = hashes(column, self.columns.hash_kind)
            elif field.name == self.columns.boxes and field.type != column.type:
                column = boxes(column, lambda: self.malformed.add("boxes that cannot be read", "blurred whole"))
            elif is_text(field.type):
                column = texts(column, self._counted(as_text, field.name))
            arrays.append(with_valid_text(column).cast(field.type, safe=False))
        return pyarrow.Table.from_arrays(arrays, schema=self._schema)

    def _counted(self, decode: Callable[[bytes], str], name: str) -> Callable[[bytes], str]:
        def counting(data: bytes) -> str:
            try:
                return data.decode()
            except UnicodeDecodeError:
                self.malformed.add("text that is not UTF-8", f"column {shown(name)}")
                return decode(data)

        return counting


def open_table(
    locations: Sequence[str],
    options: ColumnOptions | None = None,
    *,
    subset: str | Path | None = None,
    out: Path | None = None,
) -> Table:
    """Open the table in these files, folders, patterns or URLs.

    subset: a .npy of uids; only their rows are taken. out: where its shards go; no pattern looks there.

    Raises:
        TableError: nothing is there, it cannot be read, or its columns are not known.
    """
    files = find_table_files(locations, out)
    choice = Choice(None if subset is None else Subset(Path(subset)))
    malformed = Malformed()
    readers = [open_reader(files[0], malformed, is_first=True)]
    with ThreadPoolExecutor(_OPENED_AT_ONCE) as pool:
        readers += pool.map(lambda file: open_reader(file, malformed, is_first=False), files[1:])
    return Table(readers, options or ColumnOptions(), choice, malformed)


def _schema_of_all(readers: Sequence[FileReader]) -> pyarrow.Schema:
    """Every column of any file, with a type that fits the values of all files."""
    if readers[0].file.format != "parquet":  # only the first file decides the types
        return pyarrow.schema(
            list({field.name: field for reader in reversed(readers) for field in reader.schema}.values())
        )
    schemas: dict[pyarrow.Schema, FileReader] = {}
    for reader in readers:
        schema = pyarrow.schema([(field.name, stored_type(field.type)) for field in reader.schema])
        schemas.setdefault(schema, reader)
    whole = next(iter(schemas))
    for schema, reader in schemas.items():
        try:
            whole = pyarrow.unify_schemas([whole, schema], promote_options="permissive")
        except pyarrow.ArrowException as error:
            raise TableError(f"{reader.file.shown}: its columns do not fit those of the files before it "
                             f"({shown(error)})") from error  # fmt: skip
    return whole


def _compact(rows: pyarrow.Table) -> pyarrow.Table:
    """Copy the rows, so that they can be sent elsewhere without the table around them."""
    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows.combine_chunks())
    return pyarrow.ipc.open_stream(sink.getvalue()).read_all()
