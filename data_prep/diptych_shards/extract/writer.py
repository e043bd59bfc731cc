"""Write the pairs of one file to a table, which is there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from diptych.files import flush
from diptych_shards.extract.pairs import Page

SCHEMA = pa.schema(
    [
        ("url", pa.string()),
        ("caption", pa.string()),
        ("source", pa.string()),
        ("page_url", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("language", pa.string()),
        ("page_licence_url", pa.string()),
        ("warc_file", pa.string()),
        ("record_offset", pa.int64()),
        ("opt_out", pa.string()),
    ]
)
ROWS_PER_GROUP = 1 << 16


@contextmanager
def errors_name(path: Path) -> Iterator[None]:
    """Name the final file in errors, not the temporary one.

    Raises:
        OSError: any OSError raised within, with this `filename`.
    """
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


class PairWriter:
    """Writes the table in a `with` block, and leaves it only if nothing was raised. Equal pairs give equal bytes."""

    def __init__(self, path: Path):
        self._path = path
        self._partial = path.with_name(f"{path.name}.partial")
        self._columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}

    def __enter__(self) -> PairWriter:
        with errors_name(self._path):
            self._file = open(self._partial, "wb")
            self._table = pq.ParquetWriter(self._file, SCHEMA, compression="zstd")
        return self

    def add(self, page: Page, warc_file: str, record_offset: int | None) -> None:
        columns, pairs = self._columns, page.pairs
        urls, captions = zip(*pairs, strict=True)
        sources, widths, heights = zip(*pairs.values(), strict=True)
        columns["url"] += urls
        columns["caption"] += captions
        columns["source"] += [source.value for source in sources]
        columns["width"] += widths
        columns["height"] += heights
        columns["page_url"] += [page.url] * len(pairs)
        columns["language"] += [page.language] * len(pairs)
        columns["page_licence_url"] += [page.licence_url] * len(pairs)
        columns["warc_file"] += [warc_file] * len(pairs)
        columns["record_offset"] += [record_offset] * len(pairs)
        columns["opt_out"] += [",".join(page.opt_outs) or None] * len(pairs)
        if len(columns["url"]) >= ROWS_PER_GROUP:
            self._write()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with errors_name(self._path):
            try:
                if error is None:
                    self._write()
                self._table.close()  # even if the file is thrown away: an open writer complains when it is collected
                if error is None:
                    self._file.flush()
                    os.fsync(self._file.fileno())
                    os.replace(self._partial, self._path)
                    flush(self._path.parent)
            finally:
                try:
                    self._file.close()
                finally:
                    self._partial.unlink(missing_ok=True)

    def _write(self) -> None:
        if self._columns["url"]:
            with errors_name(self._path):
                self._table.write_table(pa.table(self._columns, schema=SCHEMA))
            for column in self._columns.values():
                column.clear()
