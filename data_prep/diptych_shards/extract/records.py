"""Read the records of a WARC or WAT file so that a broken record costs no other.

Files may be plain, have a gzip member for each record (as crawls have), or be gzipped as a whole. After damage, reading
continues where the next record starts.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import IO, NamedTuple

from diptych_shards.extract.gzip_members import MAGIC, READ_BYTES, Piece, members

BROKEN = "broken record"
ENDS_EARLY = "the file ends early"
MAX_HEADER_BYTES = 1 << 16

_START = re.compile(rb"WARC/\d\.\d{1,2}[ \t]*\r?\n")
_LONGEST_START = 16
_LENGTH = re.compile(rb"\d{1,15}")


class Record(NamedTuple):
    offset: int
    """Where the record, or the gzip member that contains it, starts in the file."""
    header_lines: bytes
    block: bytes
    is_cut: bool
    """The block is longer than the caller allowed."""

    def header(self, name: bytes) -> bytes:
        """The value of a header; empty if there is none. name: as WARC writes it."""
        return _header(self.header_lines, name)

    @property
    def kind(self) -> bytes:
        return self.header(b"WARC-Type").lower()

    @property
    def target(self) -> str:
        """The page's address; wget puts it in <>."""
        return self.header(b"WARC-Target-URI").decode("utf-8", "replace").removeprefix("<").removesuffix(">")


def read_records(file: IO[bytes], counts: Counter[str], *, max_block_bytes: int) -> Iterator[Record]:
    """Yield every whole record, in order.

    `counts[BROKEN]` grows by one for each place that is not a whole record; `counts[ENDS_EARLY]` is more than 0 if the
    file ends within a record.

    Raises:
        OSError: the file cannot be read.
    """
    beginning = file.read(READ_BYTES)
    is_gzip = beginning.startswith(MAGIC)
    parser = _Parser(counts, max_block_bytes, is_gzip)
    for piece in members(file, beginning) if is_gzip else _chunks(file, beginning):
        yield from parser.feed(piece)
    yield from parser.close()


class _IncompleteError(Exception):
    """More bytes are needed to read the record."""


class _BrokenError(Exception):
    """No record starts here."""


class _Parser:
    def __init__(self, counts: Counter[str], max_block_bytes: int, is_gzip: bool):
        self._counts = counts
        self._max_block_bytes = max_block_bytes
        self._is_gzip = is_gzip
        self._rest = b""
        self._rest_offset = 0
        self._to_skip = 0
        self._is_in_garbage = False

    def feed(self, piece: Piece) -> Iterator[Record]:
        is_cut_short = piece.begins and (self._rest or self._to_skip) and _START.match(piece.content)
        if piece.is_after_damage or is_cut_short:
            self._counts[BROKEN] += not self._is_in_garbage
            self._counts[ENDS_EARLY] += piece.ends_early and not self._is_in_garbage
            self._rest, self._to_skip, self._is_in_garbage = b"", 0, False
        content, offset = bytes(piece.content), piece.offset
        if self._to_skip:
            skipped = min(self._to_skip, len(content))
            self._to_skip -= skipped
            content = content[skipped:]
            offset += 0 if self._is_gzip else skipped
        if self._rest:
            content, offset = self._rest + content, self._rest_offset
        yield from self._records(content, offset, is_end=False)

    def close(self) -> Iterator[Record]:
        self._counts[ENDS_EARLY] += self._to_skip > 0
        rest, self._rest = self._rest, b""
        yield from self._records(rest, self._rest_offset, is_end=True)

    def _records(self, data: bytes, offset: int, *, is_end: bool) -> Iterator[Record]:
        position = 0
        while (position := _after_blank_lines(data, position)) < len(data):
            here = offset if self._is_gzip else offset + position
            try:
                record, position = self._record_at(data, position, here)
            except (_IncompleteError, _BrokenError) as error:
                if isinstance(error, _IncompleteError) and not is_end:
                    break
                position = self._after_broken(data, position, is_end)
                self._counts[ENDS_EARLY] += isinstance(error, _IncompleteError) and position == len(data)
                if position + _LONGEST_START > len(data) and not is_end:
                    break
            else:
                self._is_in_garbage = False
                yield record
        self._rest = data[position:]
        self._rest_offset = offset if self._is_gzip else offset + position

    def _record_at(self, data: bytes, position: int, offset: int) -> tuple[Record, int]:
        """Read a record; also return where the next one should be.

        Raises:
            _IncompleteError, _BrokenError
        """
        start = _START.match(data, position)
        if not start:
            is_short = (
                len(data) - position < _LONGEST_START
                and data[position : position + 5] == b"WARC/"[: len(data) - position]
            )
            raise _IncompleteError if is_short and not self._is_in_garbage else _BrokenError
        self._is_in_garbage = False
        headers_end, begin = _end_of_headers(data, start.end())
        if begin < 0:
            raise _IncompleteError if len(data) - position < MAX_HEADER_BYTES else _BrokenError
        header_lines = data[start.end() - 1 : headers_end + 1]
        stated = _header(header_lines, b"Content-Length")
        if not _LENGTH.fullmatch(stated) or _START.search(header_lines):  # it runs into another record
            raise _BrokenError
        length = int(stated)
        kept = min(length, self._max_block_bytes)
        if begin + kept > len(data):
            raise _IncompleteError
        end = begin + length
        block = data[begin : begin + kept]
        after = _after_blank_lines(data, end)
        if after < len(data) and not _START.match(data, after) and _START.search(block):
            raise _BrokenError  # its length is wrong, and it contains other records
        self._to_skip = max(0, end - len(data))
        return Record(offset, header_lines, block, kept < length), min(end, len(data))

    def _after_broken(self, data: bytes, position: int, is_end: bool) -> int:
        """Where the next record starts, or may start."""
        if not self._is_in_garbage:
            self._counts[BROKEN] += 1
        found = _START.search(data, position + 1)
        if found:
            self._is_in_garbage = False
            return found.start()
        self._is_in_garbage = True
        return len(data) if is_end else max(position + 1, len(data) - _LONGEST_START + 1)


def _after_blank_lines(data: bytes, position: int) -> int:
    if data.startswith(b"\r\n\r\n", position):
        position += 4
    while position < len(data) and data[position] in b"\r\n":
        position += 1
    return position


def _end_of_headers(data: bytes, start: int) -> tuple[int, int]:
    """Where the headers end, and where the block starts; -1 if neither is found."""
    limit = start + MAX_HEADER_BYTES
    for blank in (b"\r\n\r\n", b"\n\n"):
        end = data.find(blank, start - len(blank) // 2, limit)
        if end >= 0:
            return end, end + len(blank)
    return -1, -1


def _header(lines: bytes, name: bytes) -> bytes:
    """The value of a header; lines: the header lines, each with a line feed before it."""
    start = lines.find(b"\n" + name + b":")
    if start < 0:
        start = lines.lower().find(b"\n" + name.lower() + b":")
        if start < 0:
            return b""
    start += len(name) + 2
    end = lines.find(b"\n", start)
    return lines[start : end if end >= 0 else None].strip()


def _chunks(file: IO[bytes], chunk: bytes) -> Iterator[Piece]:
    """Yield the pieces of a plain file."""
    offset = 0
    while chunk:
        yield Piece(offset, chunk, False, False)
        offset += len(chunk)
        chunk = file.read(READ_BYTES)
