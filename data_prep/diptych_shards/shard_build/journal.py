"""Record what became of each row of a shard at once, so that a kill loses no fetched picture.

    page 0    magic, identity of the task, purpose, the row being decoded, the row that cost a process, and how often
    records   row, lengths, hash; facts as JSON; the stored picture; in the order that rows finish in

A worker appends every finished row at once, so its memory stays small. The shard is assembled from the journal, in the
order of the table. After a kill, the next process continues the journal; a torn last record is cut off.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash

from diptych.files import flush
from diptych.locks import lock_file, unlock_file

_MAGIC = b"diptych journal\0"
_PAGE_BYTES = mmap.PAGESIZE
_MARKS = struct.Struct("<qqq")  # row being decoded, row that cost a process, how often
_MARKS_AT = len(_MAGIC) + 64
LOCK_SECONDS = 10.0
"""How long to wait for the lock of a killed process, which the system releases when the process is gone."""
_RECORD = struct.Struct("<IIIQ")  # row, bytes of facts, bytes of picture, xxh3 of both
_NO_ROW = -1


class Journal:
    """The journal of one shard: `with Journal(path, identity) as journal`."""

    def __init__(self, path: Path, identity: bytes, *, purpose: bytes | None = None, process_was_lost: bool = False):
        """Open the journal for this process alone, with the records that it has.

        identity: 32 bytes for the rows and the options; a journal with another identity is emptied.
        purpose: 32 bytes; a journal with another purpose is emptied. None: keep it, with any purpose.
        process_was_lost: whether the process before this one died at this shard, and not because the user stopped it.

        Raises:
            BlockingIOError: another process writes to it.
        """
        self.path = path
        self._end = _PAGE_BYTES
        self._places: dict[int, tuple[int, int, int]] = {}  # row → offset, bytes of facts, bytes of picture
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            self._lock()
            self._read_records(identity, purpose)
            self._marks = mmap.mmap(self._file, _PAGE_BYTES)
        except BaseException:
            os.close(self._file)
            raise
        self.num_lost = 0
        """How often a process was lost at `lost_row`."""
        self.lost_row = _NO_ROW
        self._record_loss(process_was_lost)

    def __len__(self) -> int:
        return len(self._places)

    @property
    def rows(self) -> list[int]:
        """The numbers of the finished rows, in order."""
        return sorted(self._places)

    def __contains__(self, row: int) -> bool:
        return row in self._places

    def begin_decoding(self, row: int) -> None:
        """Record which row is being decoded, so that the next process knows the row if this one dies of it."""
        _MARKS.pack_into(self._marks, _MARKS_AT, row, self.lost_row, self.num_lost)

    def append(self, row: int, facts: Mapping[str, Any], picture: bytes = b"") -> None:
        """Record what became of a row; does nothing if the row has a record."""
        if row in self._places:
            return
        facts_bytes = json.dumps(facts, ensure_ascii=True).encode()
        header = _RECORD.pack(row, len(facts_bytes), len(picture), _hash(row, facts_bytes, picture))
        record = b"".join((header, facts_bytes, picture))
        offset = self._end
        written = 0
        try:
            while written < len(record):
                written += os.pwrite(self._file, record[written:] if written else record, offset + written)
        except OSError as error:
            error.filename = str(self.path)
            raise
        self._end = offset + len(record)
        self._places[row] = (offset + _RECORD.size, len(facts_bytes), len(picture))

    def facts(self, row: int) -> dict[str, Any]:
        """Read what was recorded about the row.

        Raises:
            KeyError: the row has no record.
        """
        offset, num_facts, _ = self._places[row]
        facts: dict[str, Any] = json.loads(os.pread(self._file, num_facts, offset))
        return facts

    def picture(self, row: int) -> bytes:
        """Read the stored picture of the row; empty for a failure."""
        offset, num_facts, num_bytes = self._places[row]
        return os.pread(self._file, num_bytes, offset + num_facts)

    def flush(self) -> None:
        """Write the journal to the disk; when this returns, it survives a power cut."""
        os.fsync(self._file)
        flush(self.path.parent)

    def close(self) -> None:
        _MARKS.pack_into(self._marks, _MARKS_AT, _NO_ROW, self.lost_row, self.num_lost)
        self._marks.close()
        unlock_file(self._file)

    def remove(self) -> None:
        self.close()
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *exception: object) -> None:
        if not self._marks.closed:
            self.close()

    def _lock(self) -> None:
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            if lock_file(self._file):
                return
            if time.monotonic() > deadline:
                raise BlockingIOError(errno.EAGAIN, "another process writes to it", str(self.path))
            time.sleep(0.05)

    def _read_records(self, identity: bytes, purpose: bytes | None) -> None:
        """Read the records. Cut off a torn last one, and empty a journal of another task."""
        start = _MAGIC + identity + (purpose or b"")
        if os.pread(self._file, len(start), 0) != start or os.fstat(self._file).st_size < _PAGE_BYTES:
            os.ftruncate(self._file, 0)
            page = bytearray(_PAGE_BYTES)
            page[: len(start)] = start
            _MARKS.pack_into(page, _MARKS_AT, _NO_ROW, _NO_ROW, 0)
            os.pwrite(self._file, page, 0)
        size = os.fstat(self._file).st_size
        while (after := self._end + _RECORD.size) <= size:
            row, num_facts, num_bytes, digest = _RECORD.unpack(os.pread(self._file, _RECORD.size, self._end))
            if after + num_facts + num_bytes > size:
                break
            body = os.pread(self._file, num_facts + num_bytes, after)
            if _hash(row, body) != digest:
                break
            self._places.setdefault(row, (after, num_facts, num_bytes))
            self._end = after + num_facts + num_bytes
        os.ftruncate(self._file, self._end)

    def _record_loss(self, process_was_lost: bool) -> None:
        row, self.lost_row, self.num_lost = _MARKS.unpack_from(self._marks, _MARKS_AT)
        if process_was_lost and row != _NO_ROW and row not in self._places:
            self.num_lost = self.num_lost + 1 if row == self.lost_row else 1
            self.lost_row = row
        _MARKS.pack_into(self._marks, _MARKS_AT, _NO_ROW, self.lost_row, self.num_lost)


def _hash(row: int, *parts: bytes) -> int:
    hashed = xxhash.xxh3_64(row.to_bytes(4, "little"))
    for part in parts:
        hashed.update(part)
    return hashed.intdigest()
