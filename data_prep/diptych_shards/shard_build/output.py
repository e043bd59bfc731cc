"""Write the files of a shard: pictures, captions and metadata in a tar, what became of each row in a parquet."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diptych.data.shard_writer import ShardWriter
from diptych.files import committed
from diptych_shards.shard_build.shard_files import (
    FAILED_TO_DOWNLOAD,
    FAILED_TO_RESIZE,
    SIZES,
    SUCCESS,
    OutputOptions,
    RowResult,
    ShardFiles,
    ShardStats,
    shard_name,
)
from diptych_shards.tables.columns import Columns
from diptych_shards.tables.json_text import json_texts, template

if TYPE_CHECKING:
    import pyarrow

_RESULTS = ("key", "status", "error_message", *SIZES, "exif")
_MAX_MESSAGES = 100_000
_ROWS_AT_ONCE = 1_000


def shard_key(number: int, row: int, rows_per_shard: int, digits: int = 5) -> str:
    """Make the key of a row: row 3 of shard 12 is `000120003` with 10,000 rows a shard."""
    row_digits = len(str(rows_per_shard - 1)) if rows_per_shard > 1 else 0
    return f"{number * 10**row_digits + row:0{row_digits + digits}d}"


class ShardOutput:
    """Writes the files of one shard. Equal rows and results give equal bytes, except for the times in `_stats.json`."""

    def __init__(self, out: Path, number: int, rows: pyarrow.Table, columns: Columns, options: OutputOptions):
        self.name = shard_name(number, options)
        self._files = ShardFiles(out, self.name)
        self._number = number
        self._rows = rows
        self._columns = columns
        self._options = options

    def write(self, results: Iterable[RowResult], picture: Callable[[int], bytes], *, started: float) -> int:
        """Write the shard, and return the number of pictures in it.

        results: one for each row, in the order of the rows.
        picture: gives the stored bytes of a row that succeeded.
        started: when work on the shard started, in seconds since the epoch.
        """
        import pyarrow

        self._files.remove()
        schema = output_schema(self._rows.schema, self._columns, self._options)
        table = self._table_columns().rename_columns(schema.names[: self._rows.num_columns])
        messages: Counter[str] = Counter()
        statuses: Counter[str] = Counter()
        failures: dict[str, list[int]] = {}
        parts = []
        remaining = iter(results)
        with ShardWriter(self._files.tar.parent, self._files.tar.name) as tar:
            for start in range(0, table.num_rows, _ROWS_AT_ONCE):
                rows = table.slice(start, _ROWS_AT_ONCE)
                found = list(islice(remaining, rows.num_rows))
                if [result.row for result in found] != list(range(start, start + rows.num_rows)):
                    raise ValueError(f"shard {self.name}: expected a result for each row, in the order of the rows")
                part = self._with_results(rows, found, schema)
                self._add_successes(tar, part, found, picture)
                parts.append(part)
                for result in found:
                    statuses[result.status] += 1
                    messages[_text(result.message) or result.status] += 1
                    if result.status != SUCCESS:
                        failures.setdefault(result.reason, []).append(result.row)
            _write_parquet(pyarrow.concat_tables(parts) if parts else schema.empty_table(), self._files.parquet)
        self._files.write_outcomes(failures)
        ended = time.time()
        stats = ShardStats(
            count=table.num_rows,
            successes=statuses[SUCCESS],
            failed_to_download=statuses[FAILED_TO_DOWNLOAD],
            failed_to_resize=statuses[FAILED_TO_RESIZE],
            duration=ended - started,
            start_time=started,
            end_time=ended,
            status_dict=_capped(messages),
        )
        self._files.write_stats(stats)
        return stats.successes

    def _table_columns(self) -> pyarrow.Table:
        """The columns of the table, in the order of the file."""
        last = [name for name in (self._columns.caption, self._columns.url) if name is not None]
        return self._rows.select([*_other_columns(self._rows.column_names, self._columns), *last])

    def _with_results(self, rows: pyarrow.Table, found: list[RowResult], schema: pyarrow.Schema) -> pyarrow.Table:
        import pyarrow

        options = self._options
        keys = [shard_key(self._number, r.row, options.rows_per_shard, options.shard_digits) for r in found]
        values: dict[str, list[Any]] = {
            "key": keys,
            "status": [result.status for result in found],
            "error_message": [_text(result.message) for result in found],
            **{name: [getattr(result, name) for result in found] for name in (*SIZES, "exif")},
            options.compute_hash: [result.digest for result in found],
        }
        arrays = [pyarrow.array(values[field.name], field.type) for field in list(schema)[rows.num_columns :]]
        return pyarrow.Table.from_arrays([*rows.columns, *arrays], schema=schema)

    def _add_successes(
        self, tar: ShardWriter, part: pyarrow.Table, found: list[RowResult], picture: Callable[[int], bytes]
    ) -> None:
        import pyarrow

        stored = [place for place, result in enumerate(found) if result.status == SUCCESS]
        kept = part if len(stored) == len(found) else part.take(pyarrow.array(stored, pyarrow.int64()))
        captions: Sequence[str | None] | None = None
        if self._columns.caption is not None:
            captions = kept["caption"].to_pylist()
        keys = kept["key"].to_pylist()
        layout = template(part.column_names)
        for place, (key, values) in enumerate(zip(keys, _rows_as_json(kept), strict=True)):
            result = found[stored[place]]
            members = {result.suffix: picture(result.row)}
            if captions is not None:
                members["txt"] = (captions[place] or "").encode()
            members["json"] = (layout % values).encode()
            tar.add(key, members)


def output_schema(rows: pyarrow.Schema, columns: Columns, options: OutputOptions) -> pyarrow.Schema:
    """The columns of each shard's parquet: the table's other columns, caption, url, and what became of the row."""
    import pyarrow

    own = [*(["caption"] if columns.caption else []), "url", *_RESULTS, options.compute_hash]
    taken = set(own)
    fields = []
    for name in _other_columns(rows.names, columns):
        free = name
        while free in taken:
            free = f"given_{free}"
        taken.add(free)
        fields.append(pyarrow.field(free, rows.field(name).type))
    return pyarrow.schema(
        [*fields, *(pyarrow.field(name, pyarrow.int32() if name in SIZES else pyarrow.string()) for name in own)]
    )


def _write_parquet(table: pyarrow.Table, path: Path) -> None:
    import pyarrow.parquet

    with committed(path) as partial:
        pyarrow.parquet.write_table(table.combine_chunks(), partial)


def _other_columns(names: Sequence[str], columns: Columns) -> list[str]:
    return [name for name in names if name not in (columns.url, columns.caption)]


def _rows_as_json(table: pyarrow.Table) -> Iterator[tuple[str, ...]]:
    """Each row's values as JSON, indented as in the file."""
    return zip(*(json_texts(column) for column in table.columns), strict=True)


def _text(message: str | None) -> str | None:
    """The message, with `?` for characters that UTF-8 cannot encode."""
    return None if message is None else message.encode("utf-8", "replace").decode()


def _capped(messages: Counter[str]) -> dict[str, int]:
    """All messages; if there are too many for a file, the most frequent ones."""
    if len(messages) <= _MAX_MESSAGES:
        return dict(messages)
    return dict(messages.most_common(_MAX_MESSAGES // 2))
