"""Make text from crawls, file names and users safe and short enough for a terminal line."""

from __future__ import annotations

import codecs
import difflib
import io
import os
import select
import signal
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

BIDI_CONTROLS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
EIGHTHS = " ▏▎▍▌▋▊▉"

PLAIN = {
    **dict.fromkeys("█▉▊▋▌", "#"),
    **dict.fromkeys("▍▎▏", " "),
    **dict.fromkeys("–—−─", "-"),
    **dict.fromkeys("‘’", "'"),
    **dict.fromkeys("“”", '"'),
    "…": "...",
    "→": "->",
    "×": "x",
    "·": "*",
}
"""Letters of our own output → what replaces them on a terminal that lacks them."""


def printable(text: str, width: int | None = None) -> str:
    """The text on one line, without control characters, cut to `width` columns.

    C0 and C1 control characters (an escape sequence starts with one) are left out; line ends and tabs become
    spaces; bidirectional controls, which can reorder the text around them, are shown as `<U+202E>`.
    """
    kept = []
    for character in text:
        if character in BIDI_CONTROLS:
            kept.append(f"<U+{ord(character):04X}>")
        elif character.isspace():
            kept.append(" ")
        elif unicodedata.category(character) not in ("Cc", "Cs"):
            kept.append(character)
    line = " ".join("".join(kept).split())
    return line if width is None else fit(line, width)


def shown(name: object) -> str:
    """The name on one line, nothing of it lost: control characters escaped, bytes that are no UTF-8 as \\xNN."""
    text = str(name)
    return text if text.isprintable() else "".join(char if char.isprintable() else _escaped(char) for char in text)


def columns(text: str) -> int:
    """How many terminal columns the text takes: two for a wide character, none for a combining mark."""
    return sum(_width(character) for character in text)


def fit(text: str, width: int) -> str:
    """The text, cut to `width` columns with `…` at the end if it is wider."""
    if columns(text) <= width:
        return text
    kept, used = "", 0
    for character in text:
        if used + _width(character) > width - 1:
            break
        kept, used = kept + character, used + _width(character)
    return kept + "…"


def bar(fraction: float, width: int) -> str:
    """A bar of `width` columns, filled to `fraction` with the precision of an eighth of a column."""
    # max(0.0, …) in this order turns a NaN into 0.
    eighths = round(min(max(0.0, fraction), 1.0) * width * 8)
    return ("█" * (eighths // 8) + EIGHTHS[eighths % 8].strip()).ljust(width)


def table(rows: Sequence[Sequence[str]], *, align: str, width: int = 80) -> str:
    """Rows as lines of at most `width` columns; the first column is shortened to fit.

    align: `<` or `>` for each column.
    """
    cells_of_rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(columns(row[column]) for row in cells_of_rows) for column in range(len(align))]
    widths[0] = max(8, min(widths[0], width - sum(widths[1:]) - 2 * (len(widths) - 1)))
    lines = []
    for row in cells_of_rows:
        cells = [_pad(fit(cell, size), size, side) for cell, size, side in zip(row, widths, align, strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def count_lines(counts: Iterable[tuple[str, int]]) -> list[str]:
    """One line for each thing that was counted, after its number; what did not occur is left out."""
    return [f"  {number:>12,}  {what}" for what, number in counts if number]


def counted(number: int, noun: str) -> str:
    """`1 shard`, `2,000 shards`, `3 classes`, `4 queries`."""
    if number == 1:
        return f"1 {noun}"
    if noun.endswith("y") and noun[-2:-1] not in "aeiou":
        return f"{number:,} {noun[:-1]}ies"
    return f"{number:,} {noun}{'es' if noun.endswith(('s', 'x', 'ch', 'sh')) else 's'}"


def percent(part: float | None, whole: float = 1) -> str:
    """A share, rounded so that only nothing is shown as 0 and only everything as 100; `-` if `part` is None."""
    if part is None:
        return "-"
    share = 100 * part / (whole or 1)
    if part == 0 or part == whole:
        return f"{share:.0f} %"
    if share < 0.01:
        return "< 0.01 %"
    return f"{share:.2f} %" if share < 1 or share > 99 else f"{share:.1f} %"


def percent_range(low: float, high: float) -> str:
    """The interval of a share, such as `71.3–74.9`."""
    return f"{100 * low:.1f}–{100 * high:.1f}"


def points(difference: float) -> str:
    """The difference of two shares in percentage points, such as `+1.3`; one that rounds to nothing is `+0.0`."""
    return f"{round(100 * difference, 1) + 0.0:+.1f}"  # + 0.0 turns -0.0 into 0.0


def points_range(low: float, high: float) -> str:
    """The interval of a difference of two shares, such as `-0.4 to +3.1`."""
    return f"{points(low)} to {points(high)}"


def is_or_are(number: int) -> str:
    """The verb that agrees with the number."""
    return "is" if number == 1 else "are"


def unknown_word(what: str, word: str, known: Sequence[str]) -> str:
    """The message for a word that is not known: it suggests the nearest known word, or lists them all."""
    near = difflib.get_close_matches(word, known, n=1)
    way_out = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
    return f"no {what} {printable(word, 40)!r}; {way_out}"


def replace_unencodable_letters() -> None:
    """Make standard output and error accept any text, whatever their encoding.

    A letter that the encoding lacks, such as a bar in Latin-1 or a byte of a file name that is not UTF-8, is replaced
    by a plain one or by `?`.
    """
    codecs.register_error("diptych.plain", _plain_letters)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="diptych.plain")


def _plain_letters(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(PLAIN.get(letter, "?") for letter in error.object[error.start : error.end]), error.end


@contextmanager
def exit_on_broken_pipe() -> Iterator[None]:
    """Exit quietly when the reader of our output has gone (`| head`), as SIGPIPE ends other tools.

    This follows the notes on SIGPIPE in Python's `signal` module: the signal's default action would also end the
    process when a network connection breaks. A broken pipe other than standard output and error is raised.
    """
    try:
        try:
            yield
        finally:
            _flush_unless_full()
    except BrokenPipeError:
        broken = [stream.fileno() for stream in (sys.stdout, sys.stderr) if stream and _has_no_reader(stream)]
        if not broken:
            raise
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for descriptor in broken:
            os.dup2(nowhere, descriptor)
        sys.exit(128 + signal.SIGPIPE)


def _escaped(char: str) -> str:
    if "\udc80" <= char <= "\udcff":  # what Python makes of a byte that is not UTF-8
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char.encode("unicode_escape").decode()


def _flush_unless_full() -> None:
    """Flush standard output now, since Python would print an error for a broken pipe when it exits.

    An error such as a full disk is ignored: Python may report that when it exits.
    """
    try:
        print(end="", flush=True)
    except BrokenPipeError:
        raise
    except OSError:
        pass


def _has_no_reader(stream: TextIO) -> bool:
    poll = select.poll()
    poll.register(stream.fileno(), select.POLLOUT)
    return any(events & select.POLLERR for _, events in poll.poll(0))


def _pad(text: str, width: int, side: str) -> str:
    space = " " * (width - columns(text))
    return text + space if side == "<" else space + text


def _width(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in ("W", "F") else 1
