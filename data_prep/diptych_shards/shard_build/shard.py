"""One shard, from rows of a table to tar, parquet and statistics.

What the fetcher brings back is decoded, resized and written to the shard's journal at once. A row with an entry there
is finished, even if this process dies; when all rows are, the shard is assembled in the order of the table.
"""

from __future__ import annotations

import hashlib
import signal
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diptych.data.caption_files import CaptionError, check_caption
from diptych.data.picture_safety import PictureError
from diptych.data.shard_index_file import INDEX_FOLDER
from diptych_shards.fetch.outcome import Fetched, FetchFailure
from diptych_shards.pictures.picture import IMG2DATASET_MESSAGES, process_picture
from diptych_shards.shard_build.journal import Journal
from diptych_shards.shard_build.options import BuildOptions
from diptych_shards.shard_build.output import ShardOutput
from diptych_shards.shard_build.shard_files import (
    FAILED_TO_DOWNLOAD,
    FAILED_TO_RESIZE,
    RowResult,
    is_done,
    read_failures,
    read_finished,
    shard_name,
)
from diptych_shards.tables.columns import Columns

if TYPE_CHECKING:
    import pyarrow

DECODING_SECONDS = 60.0
"""The longest time for decoding a picture; a real one of 100 megapixels takes less."""
LOSSES_PER_ROW = 2
"""A row is refused after this many processes died at it."""


@dataclass(frozen=True)
class ShardTask:
    """The rows of one shard, with all that a worker needs to build it."""

    number: int
    rows: pyarrow.Table
    columns: Columns
    losses: int = 0
    """How many processes, one after another, died at this shard without finishing a row."""
    journal_bytes: int = 0
    """The size of its journal when the last of them died."""
    retry: frozenset[str] = frozenset()
    """The reasons of failures to try again, if the shard is done."""
    reported: Counter[str] = field(default_factory=Counter)
    """How many of its rows were reported before, by outcome; they are in the journal and are not reported again."""


@dataclass
class News:
    """What a worker did since its last news."""

    finished: Counter[tuple[int, str]] = field(default_factory=Counter)
    """Number of rows, by the number of the shard and the outcome: `success`, or the reason of the failure."""
    fetched_bytes: int = 0
    at_files: bool = False
    """Whether the worker reads and writes files until its next news or report, which may take long on a slow disk."""

    @property
    def rows(self) -> Counter[str]:
        """Number of rows, by outcome."""
        rows: Counter[str] = Counter()
        for (_, outcome), count in self.finished.items():
            rows[outcome] += count
        return rows

    def __add__(self, other: News) -> News:
        return News(self.finished + other.finished, self.fetched_bytes + other.fetched_bytes)


@dataclass(frozen=True)
class ShardReport:
    """What a worker reports of a shard that it has finished."""

    number: int
    rows: int
    successes: int


class OpenShard:
    """A shard that is being built, and its journal."""

    def __init__(self, task: ShardTask, out: Path, options: BuildOptions, news: News):
        self._task = task
        self._options = options
        self._news = news
        self._out = out
        self._output = ShardOutput(out, task.number, task.rows, task.columns, options.output)
        self._urls: list[str | None] = task.rows[task.columns.url].to_pylist()
        identity = hashlib.sha256(f"{options.identity} {task.number}".encode()).digest()
        purpose = hashlib.sha256(" ".join(sorted(task.retry)).encode()).digest() if task.retry else None
        journal = journal_path(out, task.number, options)
        self._journal = Journal(journal, identity, purpose=purpose, process_was_lost=task.losses > 0)
        self._started = time.time()
        if task.retry and is_done(out, task.number, options.output):
            self._keep_all_but(task.retry)
        self._refuse_deadly_row()
        finished = Counter(_outcome(self._journal.facts(row)) for row in self._journal.rows)
        self._count(finished - task.reported)
        self._refuse_rows_without_caption()

    @property
    def is_complete(self) -> bool:
        return len(self._journal) == len(self._urls)

    def missing(self) -> Iterator[tuple[str, list[int]]]:
        """Each URL that is still to be fetched, with all rows that have it."""
        waiting: dict[str, list[int]] = {}
        for row, url in enumerate(self._urls):
            if row not in self._journal:
                waiting.setdefault((url or "").strip(), []).append(row)
        yield from waiting.items()

    def take(self, rows: list[int], outcome: Fetched | FetchFailure) -> None:
        """Process and record the answer to a URL, for all rows that have it."""
        if isinstance(outcome, FetchFailure):
            for row in rows:
                self._record(RowResult(row, FAILED_TO_DOWNLOAD, message=outcome.message, reason=outcome.reason))
            return
        columns = self._task.columns
        known: dict[str, tuple[RowResult, bytes]] = {}  # rows with the same hash and boxes get the same picture
        for row in rows:
            wanted = repr([self._cell(column, row) for column in (columns.hash, columns.boxes)])
            if wanted not in known:
                known[wanted] = self._processed(row, outcome.data)
            result, picture = known[wanted]
            self._record(replace(result, row=row), picture)

    def finish(self) -> ShardReport:
        """Write the files of the shard from its journal, and remove the journal."""
        if self._task.retry:
            self._journal.flush()  # the files that it replaces are removed next
        results = (RowResult.from_facts(row, self._journal.facts(row)) for row in range(len(self._urls)))
        try:
            successes = self._output.write(results, self._journal.picture, started=self._started)
        except OSError as error:
            error.filename = error.filename or str(self._out)
            raise
        self._journal.remove()
        return ShardReport(self._task.number, len(self._urls), successes)

    def _processed(self, row: int, data: bytes) -> tuple[RowResult, bytes]:
        """Check, decode and resize the row's file; the result, and the picture to store."""
        options, columns = self._options, self._task.columns
        wanted = self._cell(columns.hash, row)
        if wanted is not None and wanted.lower() != _digest(columns.hash_kind, data):
            return RowResult(row, FAILED_TO_DOWNLOAD, message="hash mismatch", reason="hash_mismatch"), b""
        if options.blocked_sha256 and _digest("sha256", data) in options.blocked_sha256:
            message = "the picture is on the block list"
            return RowResult(row, FAILED_TO_DOWNLOAD, message=message, reason="blocked_picture"), b""
        self._journal.begin_decoding(row)
        try:
            with _deadline(DECODING_SECONDS):
                picture = process_picture(data, options.pictures, self._cell(columns.boxes, row))
        except PictureError as error:
            message = IMG2DATASET_MESSAGES.get(error.reason, str(error))
            return RowResult(row, FAILED_TO_RESIZE, message=message, reason=error.reason.value), b""
        return RowResult.of_picture(row, picture, _digest(options.output.compute_hash, data)), picture.data

    def _record(self, result: RowResult, picture: bytes = b"") -> None:
        facts = result.facts()
        self._journal.append(result.row, facts, picture)
        self._count({_outcome(facts): 1})

    def _count(self, rows: Mapping[str, int]) -> None:
        self._news.finished.update({(self._task.number, outcome): count for outcome, count in rows.items()})

    def _cell(self, column: str | None, row: int) -> Any:
        return None if column is None else self._task.rows[column][row].as_py()

    def _refuse_deadly_row(self) -> None:
        journal = self._journal
        if journal.num_lost >= LOSSES_PER_ROW and journal.lost_row not in journal:
            crashed = RowResult(
                journal.lost_row, FAILED_TO_RESIZE, message="the decoder crashed", reason="decoder_crashed"
            )
            journal.append(crashed.row, crashed.facts())

    def _refuse_rows_without_caption(self) -> None:
        """Refuse these rows before any request, since they give no pair; unless the table has no column of captions."""
        if self._task.columns.caption is None:
            return
        for row, caption in enumerate(self._task.rows[self._task.columns.caption].to_pylist()):
            if row in self._journal:
                continue
            try:
                check_caption(caption)
            except CaptionError as error:
                reason = error.reason.value
                self._record(RowResult(row, FAILED_TO_DOWNLOAD, message=reason.replace("_", " "), reason=reason))

    def _keep_all_but(self, retry: frozenset[str]) -> None:
        """Copy the rows of a finished shard to the journal, without the failures to try again.

        Rows that a killed process copied or tried are in the journal already.
        """
        failures = read_failures(self._out, self._task.number, self._options.output)
        again = {row for reason, rows in failures.items() if reason in retry or "all" in retry for row in rows}
        for result, picture in read_finished(self._out, self._task.number, self._options.output):
            if result.row not in again:
                self._journal.append(result.row, result.facts(), picture)


def journal_path(out: Path, number: int, options: BuildOptions) -> Path:
    return out / INDEX_FOLDER / f"{shard_name(number, options.output)}.journal"


def _outcome(facts: Mapping[str, Any]) -> str:
    outcome: str = facts["reason"] or facts["status"]
    return outcome


def _digest(kind: str, data: bytes) -> str:
    return hashlib.new(kind, data).hexdigest()


@contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    """End this process if the block takes longer; only a signal ends a decoder that hangs in C."""
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
