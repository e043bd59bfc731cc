"""The inflated bytes of a file with many gzip members, read so that a damaged member costs no other.

libdeflate inflates a whole small member in a third of zlib's time. It tells no more than whether all is right; zlib
takes what is large, what is damaged, and what the end of the bytes read so far cuts.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Iterator
from typing import IO, NamedTuple

from ahocorasick_rs import BytesAhoCorasick, MatchKind
from deflate import DeflateError, gzip_decompress

MAGIC = b"\x1f\x8b\x08"
_SEARCH = BytesAhoCorasick((MAGIC,), matchkind=MatchKind.LeftmostFirst)
"""With the processor's vectors; `bytes.find` takes several times as long."""
READ_BYTES = 1 << 18
"""What a core's cache holds."""
PIECE_BYTES = 4 << 20
_STEP_BYTES = 1 << 14
_LEAST_MEMBER_BYTES = 18
_KEPT_BYTES = 4 << 20
"""How far back after damage the next member is sought: a member that is cut short runs into the one after it."""


class Piece(NamedTuple):
    """Up to 4 MiB of consecutive bytes."""

    offset: int
    """Of the member in the file; in a plain file, of the piece."""
    content: bytes | bytearray
    begins: bool
    """A member begins here."""
    is_after_damage: bool
    """What should stand before it was lost."""
    ends_early: bool = False
    """It was lost because the file ends."""


def members(file: IO[bytes], beginning: bytes) -> Iterator[Piece]:
    """The pieces of all members that are whole, and what comes out of the others.

    beginning: what has been read of the file.
    """
    window = _Window(file, beginning)
    while True:
        yield from window.small_members()
        if not window.has(len(MAGIC)):
            if len(window) and MAGIC.startswith(window.view(0, len(MAGIC))):
                yield Piece(window.offset, b"", False, True, ends_early=True)
            return
        offset = window.offset
        if not window.starts_with(MAGIC):
            if window.rest_is_zero():
                return
            window.seek_member()
            yield Piece(offset, b"", False, True)
            continue
        try:
            yield from _inflated(window)
        except (zlib.error, EOFError) as error:
            window.seek_member()
            ends_early = isinstance(error, EOFError) and not len(window)
            yield Piece(offset, b"", False, True, ends_early)


def _inflated(window: _Window) -> Iterator[Piece]:
    """One member; leaves the window at its end if it is whole.

    Raises:
        EOFError: the file ends within it, after what could be inflated was yielded.
        zlib.error: it is damaged.
    """
    decoder = zlib.decompressobj(31)
    offset, begins = window.offset, True
    parts: list[bytes] = []
    size = position = 0
    is_full = False
    while not decoder.eof:
        step = window.view(position, position + _STEP_BYTES)
        if not step and not is_full:
            try:
                position -= window.grow()
            except EOFError:
                yield Piece(offset, b"".join(parts), begins, False)
                raise
            continue
        part = decoder.decompress(step, PIECE_BYTES - size)
        # At its end zlib may show what follows the member as both.
        position += len(step) - len(decoder.unused_data if decoder.eof else decoder.unconsumed_tail)
        parts.append(part)
        size += len(part)
        is_full = size >= PIECE_BYTES  # then the decoder may hold more, though it has taken in all it was given
        if is_full:
            yield Piece(offset, b"".join(parts), begins, False)
            parts, size, begins = [], 0, False
    window.drop(position)
    yield Piece(offset, b"".join(parts), begins, False)


class _Window:
    """The bytes of the file from some place on; the place is where a member begins or is looked for."""

    def __init__(self, file: IO[bytes], beginning: bytes):
        self._file = file
        self._data = beginning
        self._start = 0
        self._data_offset = 0
        self._magic_offsets: deque[int] = deque()
        """In the file, of all from the place on, perhaps also some before it."""
        self._note_magic(0)

    def __len__(self) -> int:
        return len(self._data) - self._start

    @property
    def offset(self) -> int:
        return self._data_offset + self._start

    def has(self, length: int) -> bool:
        try:
            while len(self) < length:
                self.grow()
        except EOFError:
            return False
        return True

    def starts_with(self, prefix: bytes) -> bool:
        return self._data.startswith(prefix, self._start)

    def view(self, start: int, end: int) -> memoryview:
        return memoryview(self._data)[self._start + start : self._start + end]

    def small_members(self) -> Iterator[Piece]:
        """Those from here on that are small, each of which ends, as its trailer says, where the next one begins.

        Only the magic number is looked for, though more bytes are found sooner: libdeflate does not mind what follows
        a member, and one with another header would be passed over if it is as long as the one before it.
        """
        data, start, magic_offsets = self._data, self._start, self._magic_offsets
        while magic_offsets:
            end = magic_offsets[0] - self._data_offset
            if end < start + _LEAST_MEMBER_BYTES:
                magic_offsets.popleft()
                continue
            size = int.from_bytes(data[end - 4 : end], "little")
            if size > PIECE_BYTES:
                return
            try:
                content = gzip_decompress(data[start:end], size)
            except DeflateError:
                return
            if len(content) != size:  # then what stands before the next member is no trailer
                return
            self._start = end
            yield Piece(self._data_offset + start, content, True, False)
            start = end

    def drop(self, length: int) -> None:
        self._start += length

    def grow(self) -> int:
        """Read on; how many bytes were given up at the front, so that memory stays bounded.

        Raises:
            EOFError: there is no more.
        """
        following = self._file.read(READ_BYTES)
        if not following:
            raise EOFError
        given_up = max(0, len(self) - _KEPT_BYTES)
        kept = self._start + given_up
        self._data_offset += kept
        self._data = self._data[kept:] + following
        self._start = 0
        self._note_magic(max(0, len(self._data) - len(following) - len(MAGIC) + 1))
        return given_up

    def _note_magic(self, since: int) -> None:
        offset = self._data_offset + since
        self._magic_offsets.extend(
            offset + start for _, start, _ in _SEARCH.find_matches_as_indexes(self._data[since:])
        )

    def rest_is_zero(self) -> bool:
        """Padding, not damage; looks no further than a megabyte."""
        return not self._data[self._start :].strip(b"\0\r\n") and not self.has(READ_BYTES + len(self))

    def seek_member(self) -> None:
        """Go to the next place where a member begins that holds a record, or to the end."""
        self.drop(1)
        while True:
            found = self._data.find(MAGIC, self._start)
            if found < 0:
                self.drop(max(0, len(self) - len(MAGIC) + 1))
                if not self.has(len(self) + 1):
                    self.drop(len(self))
                    return
                continue
            self.drop(found - self._start)
            self.has(1024)
            try:
                if zlib.decompressobj(31).decompress(self.view(0, 1024), 16).startswith(b"WARC/"):
                    return
            except zlib.error:
                pass
            self.drop(1)
