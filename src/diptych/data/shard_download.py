"""Read files of a remote folder of shards: again after failures that may pass, and on from where a download stopped."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from diptych.data.shard_index_file import UnreachableShardError
from diptych.errors import UserError
from diptych.remote_files import file_system, is_missing, status_of, what_failed
from diptych.terminal import shown

PATIENCE_SECONDS = 200.0
"""How long a request is repeated that fails; every part of a shard that comes starts the time again. Those that wait
for the shard fail with it, well before other ranks give up (after 600 seconds by default)."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 30.0
ANSWER_SECONDS = 60.0
"""How long an answer may take; a server that drips bytes is asked again, for less."""
PART_BYTES = 16 << 20
LEAST_PART_BYTES = 1 << 18
"""A shard is requested in parts: whole ones while all is well, after failures ever smaller ones."""
_PASSING_STATUS = (408, 425, 429)

_Answer = TypeVar("_Answer")
logger = logging.getLogger(__name__)


class RemoteShardError(UnreachableShardError):
    """A file of remote shards cannot be read, whatever was tried."""


def with_retries(url: str, work: Callable[[], _Answer], patience_seconds: float | None = None) -> _Answer:
    """Call `work` until it succeeds, with pauses that double.

    Raises:
        RemoteShardError: it fails in a way that does not pass, or has failed for `patience_seconds` (PATIENCE_SECONDS).
    """
    patience_seconds = PATIENCE_SECONDS if patience_seconds is None else patience_seconds
    started = time.monotonic()
    for attempt in itertools.count():
        try:
            return work()
        except UserError:
            raise
        except Exception as error:  # each store has classes of its own
            spent = time.monotonic() - started
            if not _may_pass(url, error):
                raise RemoteShardError(f"{shown(url)} {what_failed(url, error)}") from error
            if spent > patience_seconds:
                tries = f"{attempt + 1} tries in {spent:.0f} s"
                raise RemoteShardError(
                    f"{shown(url)} {what_failed(url, error)} ({tries}); see that it can be reached, then start the "
                    f"same command again"
                ) from error
            if attempt == 2:
                logger.warning("%s %s; trying again", shown(url), what_failed(url, error))
            time.sleep(min(FIRST_PAUSE_SECONDS * 2**attempt, LONGEST_PAUSE_SECONDS))
    raise AssertionError("counting does not end")


def read_whole(url: str, is_whole: Callable[[bytes], bool]) -> bytes:
    """The bytes of a small file; read again if they are not whole.

    Raises:
        RemoteShardError: it does not exist, cannot be read, or is damaged: the same bytes come twice.
    """
    files, path = file_system(url)
    before: bytes | None = None

    def read() -> bytes:
        nonlocal before
        data: bytes = files.cat_file(path, **_limited(files))
        if is_whole(data):
            return data
        if data == before:
            raise RemoteShardError(f"{shown(url)} is damaged; copy it there again")
        before = data
        raise OSError(f"{len(data)} bytes came, which are not whole")

    return with_retries(url, read)


def download(url: str, num_bytes: int, partial: Path) -> None:
    """Append to `partial` what it lacks of the file's `num_bytes`.

    Raises:
        RemoteShardError: the file does not exist, or cannot be read.
        OSError: `partial` cannot be written.
    """
    with open(partial, "ab", buffering=0) as file:
        for part in parts_of(url, num_bytes, file.tell()):
            while part:
                part = part[file.write(part) :]


def parts_of(url: str, num_bytes: int, start: int = 0) -> Iterator[bytes]:
    """Yield the bytes of a file of `num_bytes` from `start` on, in parts of at most PART_BYTES if the server can.

    Raises:
        RemoteShardError: the file does not exist, cannot be read, or has another size.
    """
    files, path = file_system(url)
    part_bytes = PART_BYTES
    unexpected = b""

    def read() -> bytes:
        nonlocal part_bytes, unexpected
        stop = min(start + part_bytes, num_bytes)
        try:
            data: bytes = files.cat_file(path, start=start, end=stop, **_limited(files))
            if len(data) == num_bytes > stop - start:  # the server knows no ranges
                data = data[start:]
            elif len(data) != stop - start:
                # Twice the same, mostly at another place: the whole file, from a server that knows no ranges.
                if data and data == unexpected:
                    raise RemoteShardError(
                        f"{shown(url)} has {len(data)} bytes, its index says {num_bytes}; copy both there again"
                    )
                unexpected = data
            if not 0 < len(data) <= num_bytes - start:
                raise OSError(f"{len(data)} bytes came of the {stop - start} at byte {start}")
        except Exception:
            part_bytes = max(part_bytes // 2, LEAST_PART_BYTES)
            raise
        part_bytes = min(part_bytes * 2, PART_BYTES)
        return data

    while start < num_bytes:
        part = with_retries(url, read)
        start += len(part)
        yield part


def _limited(files: Any) -> dict[str, Any]:
    """Settings of a request: a time limit where fsspec takes one.

    File systems that are not asynchronous have limits of their own; they would read 5 MB more than is asked for.
    """
    return {"timeout": ANSWER_SECONDS} if files.async_impl else {"cache_type": "none"}


def _may_pass(url: str, error: Exception) -> bool:
    """Whether another try may help."""
    status = status_of(error)
    if status is not None and 400 <= status < 500:
        return status in _PASSING_STATUS
    is_final = isinstance(error, PermissionError | ImportError) or is_missing(url, error)
    return not is_final and "Credentials" not in type(error).__name__
