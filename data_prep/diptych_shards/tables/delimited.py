"""Read rows of CSV and TSV files as crawls write them: a broken line costs that line, not the file."""

from __future__ import annotations

import csv
import re
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TextIO

from diptych.data.picture_formats import PICTURE_ENDINGS
from diptych.terminal import shown
from diptych_shards.tables.columns import TableError
from diptych_shards.tables.locations import TableFile

MAX_LINE_CHARS = 1 << 20
"""No caption is this long; the 10,000 rows of a shard are in memory at once."""
_MAX_LINES_PER_ROW = 1_000
_LOOKED_AT_ROWS = 100
_IS_URL = re.compile(r"\s*(?:https?:)?//[^\s/]", re.IGNORECASE).match


@dataclass
class Malformed:
    """Counts lines of the table that are not rows, by reason, with an example of each."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, where: str) -> None:
        self.counts[reason] += 1
        self.examples.setdefault(reason, where)


@dataclass(frozen=True)
class Layout:
    """How the rows of a file are written."""

    delimiter: str | None
    """None if a whole line is one field."""
    names: tuple[str, ...]
    has_header: bool
    first_line: int = 1
    """Number of the first line that is not blank."""


def find_layout(file: TableFile) -> Layout:
    """The delimiter, and the names of the columns; a first row that holds a URL is not a header.

    Without a header, two columns are called url and caption, whichever comes first; more are column_1, column_2, ….
    """
    csv.field_size_limit(MAX_LINE_CHARS)
    if file.format == "txt":
        return Layout(None, ("url",), has_header=False)
    with file.open_text() as text:
        lines = _Lines(text)
        first = _first_of(lines)
    if first is None:
        raise TableError(f"{file.shown} is empty; expected a line of column names, then rows")
    usual = "\t" if file.format == "tsv" else ","
    header = _fields(first, usual)
    delimiter = usual
    if len(header) == 1 and not _IS_URL(header[0]):
        delimiter = next((d for d in ("\t", ",", ";") if len(_fields(first, d)) > 1), usual)
        header = _fields(first, delimiter)
    if not any(map(_IS_URL, header)):
        names = tuple(name.strip() for name in header)
        repeated = next((name for name in names if names.count(name) > 1), None)
        if repeated is not None:
            raise TableError(f"{file.shown} has {names.count(repeated)} columns named {shown(repeated)!r}; "
                             f"each needs a name of its own")  # fmt: skip
        return Layout(delimiter, names, has_header=True, first_line=lines.number)
    return Layout(delimiter, _invented_names(file, delimiter, len(header)), has_header=False)


def read_rows(file: TableFile, layout: Layout, malformed: Malformed) -> Iterator[tuple[int, list[str]]]:
    """The first line and the fields of each row, one for each name; bytes that are not UTF-8 are lone surrogates."""
    with file.open_text() as text:
        lines = _Lines(text)
        if layout.has_header:
            _first_of(lines)
        yield from _rows(lines, layout, file, malformed)


def _first_of(lines: _Lines) -> str | None:
    """The first line that is not blank; None if all are."""
    return next((line for line in lines if line.strip()), None)


def _invented_names(file: TableFile, delimiter: str, num_columns: int) -> tuple[str, ...]:
    if num_columns == 1:
        return ("url",)
    if num_columns > 2:
        return tuple(f"column_{number}" for number in range(1, num_columns + 1))
    placeholder = Layout(delimiter, ("", ""), has_header=False)
    urls: Counter[int] = Counter()
    for number, (_, row) in enumerate(read_rows(file, placeholder, Malformed())):
        if number == _LOOKED_AT_ROWS:
            break
        urls.update(place for place, value in enumerate(row) if _IS_URL(value))
    return ("url", "caption") if urls[0] >= urls[1] else ("caption", "url")


def _rows(lines: _Lines, layout: Layout, file: TableFile, malformed: Malformed) -> Iterator[tuple[int, list[str]]]:
    delimiter, width = layout.delimiter, len(layout.names)
    for line in lines:
        if not line:
            continue
        number = lines.number
        if len(line) >= MAX_LINE_CHARS:
            malformed.add("line too long", f"{file.shown}, line {number}")
            continue
        if delimiter is None:
            yield number, [line]
            continue
        # Only a quote at the start of a field has a meaning: splitting is right for all other lines, and fast.
        if line[0] != '"' and delimiter + '"' not in line:
            row = line.split(delimiter)
        else:
            row = _quoted(line, lines, layout)
        if len(row) == width:
            yield number, row
        else:
            malformed.add("too few fields" if len(row) < width else "too many fields",
                          f"{file.shown}, line {number}")  # fmt: skip


def _quoted(line: str, lines: _Lines, layout: Layout) -> list[str]:
    """The fields of a row that has quotes, and may continue in the following lines.

    If its quotes do not balance, the line is read by itself, and its quotes are text.
    """
    delimiter, width = layout.delimiter or ",", len(layout.names)
    row = _parsed(line, delimiter)
    if row is not None and len(row) == width:
        return row
    whole = _continued(line, lines, layout) if row is None else None
    if whole is not None:
        return whole
    if '\\"' in line:
        row = _fields(line, delimiter, doublequote=False, escapechar="\\")
        if len(row) == width:
            return row
    row = line.split(delimiter)
    return row if len(row) == width else _fields(line, delimiter)


def _continued(line: str, lines: _Lines, layout: Layout) -> list[str] | None:
    """Read a row that starts in this line and ends in a later one; None, and no line is used, if there is none."""
    delimiter, width = layout.delimiter or ",", len(layout.names)
    taken = [line]
    num_quotes, num_chars = line.count('"'), len(line)
    if num_quotes % 2 == 0:
        return None  # within a quoted field, quotes are doubled
    while num_quotes % 2 and len(taken) < _MAX_LINES_PER_ROW and num_chars < MAX_LINE_CHARS:
        following = lines.take()
        if following is None:
            break
        taken.append(following)
        num_quotes += following.count('"')
        num_chars += len(following) + 1
    row = _parsed("\n".join(taken), delimiter)
    if row is None or len(row) != width or all(_is_whole_row(part, delimiter, width) for part in taken):
        lines.give_back(taken[1:])
        return None
    return row


def _is_whole_row(line: str, delimiter: str, width: int) -> bool:
    """Whether a line is a row by itself: such lines are not one row, even if each contains a quote."""
    fields = line.split(delimiter)
    return width > 1 and len(fields) == width and any(map(_names_picture, fields))


def _names_picture(text: str) -> bool:
    return _IS_URL(text) is not None or text.strip().lower().endswith(PICTURE_ENDINGS)


def _parsed(text: str, delimiter: str) -> list[str] | None:
    """The fields of one row by the CSV standard; None if its quotes are not balanced."""
    try:
        rows = list(csv.reader([text], delimiter=delimiter, strict=True))
    except csv.Error:
        return None
    return rows[0] if len(rows) == 1 else None


def _fields(line: str, delimiter: str, *, doublequote: bool = True, escapechar: str | None = None) -> list[str]:
    try:
        rows = list(csv.reader([line], delimiter=delimiter, doublequote=doublequote, escapechar=escapechar))
    except csv.Error:
        return []
    return rows[0] if rows else []


class _Lines:
    """Reads lines without their ends, of bounded length; lines can be put back."""

    def __init__(self, text: TextIO):
        self._text = text
        self._given_back: deque[str] = deque()
        self.number = 0

    def __iter__(self) -> Iterator[str]:
        while (line := self.take()) is not None:
            yield line

    def take(self) -> str | None:
        self.number += 1
        if self._given_back:
            return self._given_back.popleft()
        line = self._text.readline(MAX_LINE_CHARS)
        if not line:
            return None
        if len(line) == MAX_LINE_CHARS and not line.endswith("\n"):
            while (rest := self._text.readline(MAX_LINE_CHARS)) and not rest.endswith("\n"):
                pass
            return line
        line = line.removesuffix("\n").removesuffix("\r")
        return line.replace("\0", "\N{REPLACEMENT CHARACTER}") if "\0" in line else line

    def give_back(self, lines: list[str]) -> None:
        self._given_back.extendleft(reversed(lines))
        self.number -= len(lines)
