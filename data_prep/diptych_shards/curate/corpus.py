"""Texts of a corpus, one after the other: lines of text files, plain or gzip, or a column of parquet files."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow
from pyarrow import parquet

from diptych_shards.curate.options import CurateError
from diptych_shards.refusals import shown
from diptych_shards.tables.columns import CAPTION_COLUMNS, find_column


def read_corpus(paths: Sequence[Path], column: str | None) -> Iterator[str]:
    """What is no UTF-8 becomes U+FFFD.

    column: of parquet files; None: found by name.

    Raises:
        CurateError: a file cannot be read.
    """
    for path in paths:
        if path.suffix == ".parquet":
            yield from _column(path, column)
        else:
            yield from _lines(path)


def _lines(path: Path) -> Iterator[str]:
    try:
        opened = gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb")
        with opened as file:
            for line in file:
                yield line.decode("utf-8", "replace")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise CurateError(f"{shown(path)}: damaged ({shown(error)})") from error


def _column(path: Path, given: str | None) -> Iterator[str]:
    try:
        with parquet.ParquetFile(path, pre_buffer=False) as file:
            names = file.schema_arrow.names
            name = find_column("text", given, CAPTION_COLUMNS, names, shown(path))
            if name is None:
                raise CurateError(f"{shown(path)} has no column that could be the text; name it with --text-column. "
                                  f"Its columns: {', '.join(map(shown, names))}")  # fmt: skip
            for batch in file.iter_batches(8_192, columns=[name], use_threads=False):
                for value in batch.column(0).cast(pyarrow.large_string()).cast(pyarrow.large_binary()).to_pylist():
                    if value is not None:
                        yield value.decode("utf-8", "replace")
    except pyarrow.ArrowException as error:
        raise CurateError(f"{shown(path)}: no readable parquet file ({shown(error)})") from error
