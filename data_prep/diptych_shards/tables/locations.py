"""Find the files of a table: paths, folders, patterns, and what fsspec can open (s3://, gs://, https://, …)."""

from __future__ import annotations

import codecs
import glob
import io
import os
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import xxhash

from diptych.errors import UserError
from diptych.remote_files import file_system, is_remote, one_line, what_failed
from diptych.terminal import shown
from diptych_shards.tables.columns import TableError

FORMATS = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".txt": "txt",
}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
_BEGINNINGS = {"gzip": b"\x1f\x8b", "bz2": b"BZh", "zstd": b"\x28\xb5\x2f\xfd"}
_NO_TEXT = {
    _BEGINNINGS["gzip"]: ("gzip", "name it {}.gz"),
    _BEGINNINGS["bz2"]: ("bzip2", "name it {}.bz2"),
    _BEGINNINGS["zstd"]: ("zstd", "name it {}.zst"),
    b"PAR1": ("parquet", "name it .parquet"),
    b"PK\x03\x04": ("a ZIP archive, perhaps Excel's", "save it as CSV in UTF-8"),
}
"""What a file that is named as text may be instead, by its first bytes, with the way out."""
PICTURE_TABLE_SUFFIXES = tuple(suffix for suffix in FORMATS if suffix != ".txt")
"""A .txt is a list of URLs, or the caption of a picture."""
_TOLD_BY_BYTES = 8
_BY_ZEROS: dict[tuple[bool, ...], str] = {
    (False, True) * 4: "utf-16-le",
    (True, False) * 4: "utf-16-be",
    (False, True, True, True) * 2: "utf-32-le",
    (True, True, True, False) * 2: "utf-32-be",
}
"""Encodings, by the pattern of zeros among the first bytes."""
_SAMPLED_BYTES = 64 << 10
_BUFFER_BYTES = 1 << 20
_MEASURED_BYTES = 8 * _BUFFER_BYTES


@dataclass(frozen=True)
class TableFile:
    """One file of the table."""

    location: str
    format: str
    compression: str | None

    @property
    def shown(self) -> str:
        return shown(self.location)

    @property
    def name(self) -> str:
        return self.location.rstrip("/").rpartition("/")[2]

    @property
    def errors(self) -> tuple[type[Exception], ...]:
        """The errors that reading the file may raise: each library for remote files has its own."""
        if is_remote(self.location):
            return (Exception,)
        return (OSError, EOFError, ValueError, NotImplementedError, zlib.error)

    def open(self) -> IO[bytes]:
        """Open the bytes as they are stored, seekable."""
        opener, path = (io.open, self.location)
        if is_remote(self.location):
            files, path = _file_system(self.location)
            opener = files.open
        try:
            return opener(path, "rb")
        except self.errors as error:
            raise _cannot_read(self.location, error) from error

    def open_text(self) -> io.TextIOWrapper:
        """Open the text, unpacked; bytes that are not UTF-8 become lone surrogates.

        Lines end at \\n; in a file without one, at \\r.
        """
        stored = self.open()
        stream: Any = stored
        if self.compression == "gzip":
            import gzip

            stream = gzip.GzipFile(fileobj=stored, mode="rb")
        elif self.compression == "bz2":
            import bz2

            stream = bz2.BZ2File(stored)
        elif self.compression == "zstd":
            import pyarrow  # the standard library has none before Python 3.14

            stream = pyarrow.CompressedInputStream(pyarrow.PythonFile(stored, "r"), "zstd")
        stream = io.BufferedReader(_Raw(stream, stored, self), _BUFFER_BYTES)
        try:
            start = stream.peek(8)
            for magic, (what, way_out) in _NO_TEXT.items():
                if start.startswith(magic):
                    raise TableError(f"{self.shown} is not text but {what}; {way_out.format(self.shown)}")
        except TableError:
            stream.close()
            raise
        newline = None if b"\r" in start and b"\n" not in start else "\n"
        if wide := _wide_encoding(start):
            return io.TextIOWrapper(stream, encoding=wide, errors="replace", newline=newline)
        return io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline=newline)

    def why_not_unpacked(self) -> str:
        """Describe what is wrong with a file that cannot be unpacked as its name says."""
        with self.open() as stored:
            start = stored.read(8)
        if start.startswith(_BEGINNINGS[self.compression or ""]):
            return f"its {self.compression} data end too early or are damaged"
        bare = self.shown.rpartition(".")[0]
        for magic, (what, way_out) in _NO_TEXT.items():
            if start.startswith(magic):
                return f"it is not {self.compression} but {what}; {way_out.format(bare)}"
        return f"it is not {self.compression}, as its name says; if it is plain text, name it {bare}"

    def lines_per_byte(self) -> float:
        """Estimate the lines per stored byte from the first megabytes of text."""
        with self.open_text() as text:
            buffer: Any = text.buffer
            data: bytes = buffer.read(_MEASURED_BYTES)
            stored: int = buffer.raw.tell()
            return (data.count(b"\n") + (data[-1:] not in (b"", b"\n"))) / max(stored, 1)

    @cached_property
    def num_bytes(self) -> int:
        if not is_remote(self.location):
            return os.stat(self.location).st_size
        return int(self._info.get("size") or 0)

    @property
    def identity(self) -> str:
        """Identify the content of the file: its size, a hash of its first and last bytes, and when it was written."""
        if is_remote(self.location):
            times = (self._info.get(name) for name in ("ETag", "etag", "mtime", "LastModified", "updated"))
            written = next((value for value in times if value), "")
        else:
            written = os.stat(self.location).st_mtime_ns
        with self.open() as file:
            hashed = xxhash.xxh3_128(file.read(_SAMPLED_BYTES))
            if self.num_bytes > _SAMPLED_BYTES and file.seekable():
                file.seek(self.num_bytes - _SAMPLED_BYTES)
                hashed.update(file.read(_SAMPLED_BYTES))
        return f"{self.name}\n{self.num_bytes}\n{written}\n{hashed.hexdigest()}"

    @cached_property
    def _info(self) -> dict[str, Any]:
        files, path = _file_system(self.location)
        try:
            info: dict[str, Any] = files.info(path)
        except self.errors as error:
            raise _cannot_read(self.location, error) from error
        return info


def find_table_files(locations: Sequence[str], out: Path | None = None) -> list[TableFile]:
    """Find the files of a table; those of a folder or a pattern are in the order of their names.

    out: what a pattern finds below it was written there before, and is not the table's.

    Raises:
        TableError: nothing is there, a format is not known, or formats are mixed.
    """
    files = []
    for location in locations:
        found = _expand(location, out)
        if isinstance(found, list):
            files += found
        else:
            files.append(table_file(found))
    if not files:
        raise TableError("no table was named")
    seen: set[str] = set()
    for file in files:
        if file.location in seen:
            raise TableError(f"{file.shown} is named twice")
        seen.add(file.location)
    kinds = sorted({file.format for file in files})
    if len(kinds) > 1:
        raise TableError(f"the table's files are of several formats ({', '.join(kinds)}); name files of one format, "
                         f"for example with a pattern such as 'FOLDER/*.{kinds[0]}'")  # fmt: skip
    return files


def table_file(location: str) -> TableFile:
    """The file, with the format and compression given by its name."""
    found = _known(location)
    if found is None:
        raise not_a_table(location, FORMATS)
    return found


def not_a_table(location: str, suffixes: Iterable[str]) -> TableError:
    """The error for a file whose name ends in none of the suffixes of tables."""
    expected = f"expected {', '.join(suffixes)}, and after all but parquet perhaps {', '.join(COMPRESSIONS)}"
    return TableError(f"{shown(location)} is not a table by its name; {expected}")


def is_picture_table(location: str) -> bool:
    """Whether the name is that of a table of pictures, not of a folder, a tar or a picture."""
    file = _known(location)
    return file is not None and file.format != "txt" and not os.path.isdir(location)


def _known(location: str) -> TableFile | None:
    name = location.rstrip("/").rpartition("/")[2].lower()
    if is_remote(location):
        name = name.partition("?")[0]
    compression = next((kind for suffix, kind in COMPRESSIONS.items() if name.endswith(suffix)), None)
    if compression is not None:
        name = name.rpartition(".")[0]
    kind = next((kind for suffix, kind in FORMATS.items() if name.endswith(suffix)), None)
    if kind is None or (kind == "parquet" and compression):
        return None
    return TableFile(location, kind, compression)


def _expand(location: str, out: Path | None) -> list[TableFile] | str:
    """The files of a folder or a pattern; the location itself if it names a file."""
    if not is_remote(location):
        location = os.path.expanduser(location)
        if os.path.isfile(location):
            return location
        if os.path.isdir(location):
            return _tables_of(location, [entry.path for entry in os.scandir(location) if entry.is_file()])
        if glob.has_magic(location):
            found = [path for path in glob.glob(location, recursive=True) if os.path.isfile(path)]
            ours = None if out is None else out.resolve()
            return _tables_of(location, [p for p in found if ours is None or ours not in Path(p).resolve().parents])
        raise TableError(f"{shown(location)} does not exist; expected a table ({', '.join(FORMATS)})")
    files, path = _file_system(location)
    try:
        if glob.has_magic(path) and "?" not in location:
            return _tables_of(location, [files.unstrip_protocol(found) for found in files.glob(path)])
        if _known(location) is None and files.isdir(path):
            found = [f["name"] for f in files.ls(path, detail=True) if f["type"] == "file"]
            return _tables_of(location, [files.unstrip_protocol(name) for name in found])
    except Exception as error:  # each file system has classes of its own
        raise _cannot_read(location, error) from error
    return location


def _tables_of(location: str, paths: list[str]) -> list[TableFile]:
    found = [_known(path) for path in sorted(paths) if not path.rpartition("/")[2].startswith((".", "_"))]
    files = [file for file in found if file is not None]
    if not files:
        raise TableError(f"{shown(location)} contains no table ({', '.join(FORMATS)}); "
                         f"for its subfolders, use '{shown(location.rstrip('/'))}/**/*.parquet'")  # fmt: skip
    return files


def _file_system(location: str) -> tuple[Any, str]:
    try:
        return file_system(location)
    except UserError as error:
        raise TableError(str(error)) from error


def _cannot_read(location: str, error: Exception) -> TableError:
    return TableError(f"{shown(location)} {what_failed(location, error)}")


def _wide_encoding(start: bytes) -> str | None:
    """The encoding of a text whose characters take two or four bytes each; None for UTF-8.

    Without a byte-order mark, the zero bytes decide: a table starts with ASCII letters.
    """
    if start.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    zeros = [not byte for byte in start[:_TOLD_BY_BYTES]]
    return _BY_ZEROS.get(tuple(zeros))


class _Raw(io.RawIOBase):
    """A stream whose errors are one line that names the file."""

    def __init__(self, stream: Any, stored: IO[bytes], file: TableFile):
        self._stream = stream
        self._stored = stored
        self._file = file

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        """The position in the stored bytes."""
        return self._stored.tell()

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._stream.read(len(buffer))
        except self._file.errors as error:
            why = one_line(error)
            if self._file.compression and not is_remote(self._file.location):
                why = self._file.why_not_unpacked()
            raise TableError(f"{self._file.shown} cannot be read: {why}") from error
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
            self._stored.close()
        super().close()
