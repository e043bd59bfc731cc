"""Inflate a file of many gzip members so that a damaged member costs no other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, NamedTuple

from isal import isal_zlib

MAGIC = b"\x1f\x8b\x08"
READ_BYTES = 1 << 18
"""As much as fits in the cache of a core."""
PIECE_BYTES = 4 << 20
_STEP_BYTES = 1 << 14
_KEPT_BYTES = 4 << 20
"""How far back the search for the next member starts after damage: a truncated member runs into the one after it."""
_DamageError: type[Exception] = isal_zlib.error  # type: ignore[assignment]  # an instance, by its stub


class Piece(NamedTuple):
    """Up to 4 MiB of consecutive bytes."""

    offset: int
    """Where in the file the member starts; in a plain file, the piece."""
    content: bytes
    begins: bool
    """A member starts here."""
    is_after_damage: bool
    """The bytes before it were lost."""
    ends_early: bool = False
    """They were lost because the file ends."""


def members(file: IO[bytes], beginning: bytes) -> Iterator[Piece]:
    """Yield the pieces of all whole members, and what can be inflated of the others.

    beginning: the bytes already read from the file.
    """
    window = _Window(file, beginning)
    while window.has(len(MAGIC)):
        offset = window.offset
        if not window.starts_with(MAGIC):
            if window.rest_is_zero():
                return
            window.seek_member()
            yield Piece(offset, b"", False, True)
            continue
        try:
            yield from _inflated(window)
        except (_DamageError, EOFError) as error:
            window.seek_member()
            ends_early = isinstance(error, EOFError) and not len(window)
            yield Piece(offset, b"", False, True, ends_early)
    if len(window) and MAGIC.startswith(window.view(0, len(MAGIC))):
        yield Piece(window.offset, b"", False, True, ends_early=True)


def _inflated(window: _Window) -> Iterator[Piece]:
    """Inflate one member; leave the window at its end if it is whole.

    Raises:
        EOFError: the file ends within it, after what could be inflated was yielded.
        _DamageError: it is damaged.
    """
    decoder = isal_zlib.decompressobj(31)
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
        # At the end of a member, the bytes after it are in both attributes.
        position += len(step) - len(decoder.unused_data if decoder.eof else decoder.unconsumed_tail)
        parts.append(part)
        size += len(part)
        is_full = size >= PIECE_BYTES  # the decoder may hold more
        if is_full:
            yield Piece(offset, b"".join(parts), begins, False)
            parts, size, begins = [], 0, False
    window.drop(position)
    yield Piece(offset, b"".join(parts), begins, False)


class _Window:
    """The bytes of the file from the place where a member starts, or where the search for one starts."""

    def __init__(self, file: IO[bytes], beginning: bytes):
        self._file = file
        self._data = beginning
        self._start = 0
        self._data_offset = 0

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

    def drop(self, length: int) -> None:
        self._start += length

    def grow(self) -> int:
        """Read on; return how many bytes were given up at the front, so that memory stays bounded.

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
        return given_up

    def rest_is_zero(self) -> bool:
        """Whether the rest of the file is padding: zeros or line ends, at most a quarter of a megabyte of them."""
        return not self._data[self._start :].strip(b"\0\r\n") and not self.has(READ_BYTES + len(self))

    def seek_member(self) -> None:
        """Go to the start of the next member that contains a record, or to the end."""
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
                if isal_zlib.decompressobj(31).decompress(self.view(0, 1024), 16).startswith(b"WARC/"):
                    return
            except _DamageError:
                pass
            self.drop(1)
