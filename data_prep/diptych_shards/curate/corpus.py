"""The texts of a file: lines of text, plain or gzip, or a column of parquet."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

import pyarrow
from pyarrow import parquet

from diptych.terminal import shown
from diptych_shards.curate.columns import wanted_column
from diptych_shards.curate.options import CurateError
from diptych_shards.curate.pairs import is_text
from diptych_shards.tables.columns import CAPTION_COLUMNS


def read_corpus(path: Path, column: str | None) -> Iterator[str]:
    """What is no UTF-8 becomes U+FFFD.

    column: of a parquet file; None: found by name.

    Raises:
        CurateError: the file cannot be read.
    """
    yield from _column(path, column) if path.suffix == ".parquet" else _lines(path)


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
            texts = [field.name for field in file.schema_arrow if is_text(field.type)]
            name = wanted_column("text", given, CAPTION_COLUMNS, texts, path)
            for batch in file.iter_batches(8_192, columns=[name], use_threads=False):
                for value in batch.column(0).cast(pyarrow.large_string()).cast(pyarrow.large_binary()).to_pylist():
                    if value is not None:
                        yield value.decode("utf-8", "replace")
    except (pyarrow.ArrowException, OSError) as error:
        raise CurateError(f"{shown(path)}: no readable parquet file ({shown(error)})") from error
