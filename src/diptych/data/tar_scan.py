"""Read a tar from an unknown source without trusting it.

Python's tarfile takes a damaged header for the end of the archive and drops the rest silently; so does everything
built on it. Here an archive ends only at two zero blocks that only zeros follow.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from diptych.errors import UserError

BLOCK_BYTES = 512
MAX_EXTENDED_HEADER_BYTES = 1 << 20
"""tarfile reads these headers (long names, PAX records) whole into memory; honest ones are below 10 KB."""

_EXTENDED_TYPES = (b"x", b"g", b"X", b"L", b"K")
_PLAIN_TYPES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_COMPRESSIONS = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
}


class BrokenTarError(UserError):
    """The file is not a whole, plain tar; the message names the byte offset."""


@dataclass(frozen=True)
class TarEntry:
    """One member: where its bytes are."""

    name: str
    """Bytes that are not UTF-8 are lone surrogates."""
    offset: int
    size: int
    is_plain: bool
    """A regular file with its bytes in one piece; False for links, devices, folders and sparse files."""
    is_folder: bool


def scan_tar(file: BinaryIO) -> Iterator[TarEntry]:
    """Yield every member of a seekable, uncompressed tar, in file order.

    Raises:
        BrokenTarError: if the archive is compressed, no tar, damaged, truncated, or followed by other bytes.
    """
    num_bytes = os.fstat(file.fileno()).st_size
    _refuse_compressed(file.read(BLOCK_BYTES))
    file.seek(0)
    with _translated_errors(0):
        archive = tarfile.TarFile(fileobj=file, mode="r", tarinfo=_StrictTarInfo, encoding="utf-8",
                                  errors="surrogateescape")  # fmt: skip
    end = 0
    # In an archive without members the offset is 0 already, from where Python 3.10 cannot look for a next member.
    while archive.firstmember is not None or archive.offset > 0:  # type: ignore[attr-defined]
        with _translated_errors(archive.offset):
            member = archive.next()
        if member is None:
            break
        if member.size < 0 or archive.offset <= end:
            raise BrokenTarError(f"at byte {end}: the header gives an impossible size")
        end = archive.offset
        if end > num_bytes:
            raise BrokenTarError(f"at byte {num_bytes}: truncated: {member.name!r} goes on to byte {end}")
        is_plain = member.type in _PLAIN_TYPES and not member.issparse()
        yield TarEntry(member.name, member.offset_data, member.size, is_plain, member.isdir())
        archive.members.clear()  # type: ignore[attr-defined]  # else a million headers stay in memory
    _check_end(file, archive.offset, num_bytes)


class _StrictTarInfo(tarfile.TarInfo):
    """Raises where tarfile would end silently."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> _StrictTarInfo:
        position = archive.fileobj.tell()
        header = archive.fileobj.read(BLOCK_BYTES)
        archive.fileobj.seek(position)
        if not header:
            raise _without_end(position)
        _check_size(header, position)
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise  # a zero block: the end, which scan_tar checks
        except tarfile.HeaderError as error:
            raise BrokenTarError(f"at byte {position}: no valid tar header ({error})") from error


class _translated_errors:
    """Turn whatever else tarfile raises on hostile headers into a BrokenTarError at this offset."""

    def __init__(self, offset: int):
        self._offset = offset

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        hostile = (tarfile.TarError, ValueError, IndexError, KeyError, OverflowError, RecursionError)
        if isinstance(error, hostile) and not isinstance(error, BrokenTarError):
            raise BrokenTarError(f"at byte {self._offset}: the header cannot be read ({error})") from error


def _refuse_compressed(start: bytes) -> None:
    if not start:
        raise BrokenTarError("at byte 0: the file is empty")
    for magic, name in _COMPRESSIONS.items():
        if start.startswith(magic):
            raise BrokenTarError(f"at byte 0: compressed with {name}; unpack it to a plain tar first")


def _check_size(header: bytes, position: int) -> None:
    field = header[124:136]
    if field.startswith(b"\xff") or b"-" in field:  # tarfile would read backwards
        raise BrokenTarError(f"at byte {position}: the header gives a negative size")
    if header[156:157] in _EXTENDED_TYPES:
        digits = field.strip(b" \0") or b"0"
        if not digits.isdigit() or int(digits, 8) > MAX_EXTENDED_HEADER_BYTES:
            raise BrokenTarError(f"at byte {position}: an extended header is too large")


def _check_end(file: BinaryIO, position: int, num_bytes: int) -> None:
    if num_bytes - position < 2 * BLOCK_BYTES or num_bytes % BLOCK_BYTES:
        raise _without_end(num_bytes)
    file.seek(position)
    while chunk := file.read(1 << 20):
        if chunk.count(0) != len(chunk):
            at = position + len(chunk) - len(chunk.lstrip(b"\0"))
            raise BrokenTarError(f"at byte {at}: more bytes after the end of the archive")
        position += len(chunk)


def _without_end(position: int) -> BrokenTarError:
    return BrokenTarError(f"at byte {position}: truncated: the two closing zero blocks are missing")
