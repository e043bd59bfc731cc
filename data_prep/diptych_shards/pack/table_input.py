"""A table of picture paths and captions: CSV, TSV or parquet."""

from __future__ import annotations

import csv
import hashlib
import os
import posixpath
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from diptych.data.caption_files import CaptionReason
from diptych.files import sha256_of
from diptych_shards.pack.candidates import Candidate, PackError, PackInput
from diptych_shards.refusals import Reason, Refusal, shown
from diptych_shards.tables.json_text import plain

PATH_COLUMNS = (
    *(
        "path",
        "file",
        "file_name",
        "filename",
        "file_path",
        "filepath",
        "image",
        "image_path",
        "picture",
        "img",
    ),
)
CAPTION_COLUMNS = ("caption", "text", "captions", "title", "alt", "alt_text")


def read_table(table: Path, folder: Path, path_column: str | None, caption_column: str | None) -> PackInput:
    """Each row as a candidate or a refusal; paths are relative to the folder."""
    candidates: list[Candidate] = []
    refusals: list[Refusal] = []
    fingerprint = hashlib.sha256(sha256_of(table).encode())
    seen: set[str] = set()
    columns, rows = _open(table)
    path_column = _column("path", path_column, PATH_COLUMNS, columns, table)
    caption_column = _column("caption", caption_column, CAPTION_COLUMNS, columns, table)
    for number, row in enumerate(rows, start=1):
        if None in row or row.get(path_column) is None:
            refusals.append(Refusal(f"row {number}", Reason.MALFORMED_ROW.value))
            continue
        path = _relative(str(row[path_column]), folder)
        found = _look_at(path, folder, seen)
        if isinstance(found, Reason):
            refusals.append(Refusal(path, found.value, f"row {number}"))
            continue
        seen.add(path)
        fingerprint.update(os.fsencode(f"{path}\0{found.st_size}\0{found.st_mtime_ns}\n"))
        caption = row.pop(caption_column)
        del row[path_column]
        extra = {name: plain(value) for name, value in row.items()}
        if caption is None:
            refusals.append(Refusal(path, CaptionReason.NO_CAPTION.value))
        elif not isinstance(caption, str):
            refusals.append(Refusal(path, CaptionReason.CAPTION_NOT_TEXT.value, type(caption).__name__))
        else:
            candidates.append(Candidate(path, found.st_size, caption=caption, extra=extra))
    candidates.sort(key=lambda candidate: os.fsencode(candidate.path))
    return PackInput(candidates, refusals, fingerprint.hexdigest())


def _open(table: Path) -> tuple[list[str], Iterator[dict[Any, Any]]]:
    """Column names and rows; a row with too many fields has the key None."""
    kind = table.suffix.lower()
    if kind == ".parquet":
        return _open_parquet(table)
    if kind in (".csv", ".tsv"):
        return _open_csv(table, "\t" if kind == ".tsv" else ",")
    raise PackError(f"{shown(table)}: a table must be .csv, .tsv or .parquet")


def _open_csv(table: Path, delimiter: str) -> tuple[list[str], Iterator[dict[Any, Any]]]:
    rows = _csv_rows(table, delimiter)
    header = next(rows)
    return [str(name) for name in header], rows


def _csv_rows(table: Path, delimiter: str) -> Iterator[dict[Any, Any]]:
    # Captions in another encoding are refused row by row: surrogates mark them.
    with open(table, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.DictReader(file, delimiter=delimiter, strict=True)
        try:
            yield dict.fromkeys(reader.fieldnames or [])
            yield from reader
        except csv.Error as error:
            raise PackError(f"{shown(table)}: line {reader.line_num}: {error}") from error


def _open_parquet(table: Path) -> tuple[list[str], Iterator[dict[Any, Any]]]:
    import pyarrow.parquet as parquet  # here: half a second that other inputs need not pay

    try:
        file = parquet.ParquetFile(table)
    except (OSError, ValueError) as error:
        raise PackError(f"{shown(table)}: no readable parquet file ({shown(error)})") from error
    return file.schema_arrow.names, (row for batch in file.iter_batches() for row in batch.to_pylist())


def _column(kind: str, given: str | None, usual: Sequence[str], columns: list[str], table: Path) -> str:
    there = ", ".join(map(shown, columns)) or "none"
    if given is not None:
        if given not in columns:
            raise PackError(f"{shown(table)} has no column {shown(given)!r}; its columns: {there}")
        return given
    fitting = [name for name in columns if name.strip().lower() in usual]
    if len(fitting) != 1:
        found = "several columns" if fitting else "no column"
        raise PackError(f"{shown(table)} has {found} that could be the {kind}; name it with --{kind}-column. "
                        f"Its columns: {there}")  # fmt: skip
    return fitting[0]


def _relative(path: str, folder: Path) -> str:
    """Relative to the folder where possible, without `.` and `..`."""
    if os.path.isabs(path):
        path = os.path.relpath(path, os.path.abspath(folder))
    return posixpath.normpath(path)


def _look_at(path: str, folder: Path, seen: set[str]) -> os.stat_result | Reason:
    """What the file system says of the picture, or why it cannot be one."""
    if path == ".." or path.startswith("../"):
        return Reason.OUTSIDE_FOLDER
    if path in seen:
        return Reason.DUPLICATE_PATH
    try:
        found = os.stat(folder / path)
    except (OSError, ValueError):  # ValueError: a zero byte in the path
        return Reason.MISSING_FILE
    return found if stat.S_ISREG(found.st_mode) else Reason.NOT_A_FILE
