"""Processes that each work on a few items at a time; results come in order, whatever happens to a process.

`multiprocessing.Pool` waits forever for a process that died. Here each process has a pipe of its own, answers
item by item, and is replaced when it dies or falls silent: the item it was at is tried once more and then
given up.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import time
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

from diptych.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_FAILED_STARTS = 5
"""In a row."""
CANNOT_START = (
    "worker processes end before they have started: they said why, above, or memory runs out; "
    "a script must call this under `if __name__ == '__main__':`"
)
SILENCE_SECONDS = 120.0
"""No honest picture of 64 megapixels takes longer; a decoder that hangs does."""

_READY = "ready"


@dataclass
class _Batch(Generic[Item, Result]):
    """Some items, and the results of the first of them."""

    items: Sequence[Item]
    results: list[Result] = field(default_factory=list)
    failures: int = 0
    """How often a process was lost at the first item without a result."""

    @property
    def is_done(self) -> bool:
        return len(self.results) == len(self.items)


class Crew(Generic[Item, Result]):
    """Applies `work` to batches of items in `size` processes: `with Crew(...) as crew: crew.map(batches)`."""

    def __init__(
        self,
        work: Callable[[Item], Result],
        size: int,
        *,
        give_up: Callable[[Item], Result],
        silence_seconds: float = SILENCE_SECONDS,
    ):
        """give_up: the result of an item at which a process was lost twice."""
        self._work = work
        self._give_up = give_up
        self._silence_seconds = silence_seconds
        self._failed_starts = 0
        self._context = multiprocessing.get_context("spawn")
        self._workers = [_Worker(self._context, work) for _ in range(size)]

    def map(self, batches: Iterable[Sequence[Item]]) -> Iterator[Result]:
        """The results of all items, in order; at most three batches per process are in memory.

        Raises:
            RuntimeError: if `work` raises, with the traceback of its process.
            ValueError: if processes cannot start.
        """
        source = iter(batches)
        waiting: deque[_Batch[Item, Result]] = deque()  # taken from the source, result not yet given out
        unassigned: deque[_Batch[Item, Result]] = deque()
        while True:
            while len(waiting) < 3 * len(self._workers) and (items := next(source, None)) is not None:
                waiting.append(_Batch(items))
                unassigned.append(waiting[-1])
            if not waiting:
                return
            self._assign(unassigned)
            self._collect(unassigned)
            while waiting and waiting[0].is_done:
                yield from waiting.popleft().results

    def __enter__(self) -> Crew[Item, Result]:
        return self

    def __exit__(self, *exception: object) -> None:
        for worker in self._workers:
            worker.end()

    def _assign(self, unassigned: deque[_Batch[Item, Result]]) -> None:
        # Only a process that waits is written to: one that is busy may be blocked writing to us.
        for worker in self._workers:
            if unassigned and worker.is_ready and worker.batch is None:
                worker.start(unassigned.popleft())

    def _collect(self, unassigned: deque[_Batch[Item, Result]]) -> None:
        """Wait for something to happen, and take it in."""
        busy = [worker for worker in self._workers if worker.batch is not None or not worker.is_ready]
        ready = wait([worker.connection for worker in busy], timeout=1.0)
        for worker in busy:
            if worker.connection in ready:
                try:
                    worker.receive()
                except (EOFError, OSError):
                    self._replace(worker, unassigned)
            elif time.monotonic() - worker.last_heard > self._silence_seconds:
                self._replace(worker, unassigned)

    def _replace(self, worker: _Worker, unassigned: deque[_Batch[Item, Result]]) -> None:
        self._failed_starts = 0 if worker.is_ready else self._failed_starts + 1
        if self._failed_starts > MAX_FAILED_STARTS:
            raise UserError(CANNOT_START)
        worker.end()
        self._workers[self._workers.index(worker)] = _Worker(self._context, self._work)
        batch = worker.batch
        if batch is None or batch.is_done:
            return
        batch.failures += 1
        if batch.failures == 2:
            batch.results.append(self._give_up(batch.items[len(batch.results)]))
            batch.failures = 0
        if not batch.is_done:
            unassigned.appendleft(batch)


class _Worker:
    """One process, and the batch it is at."""

    def __init__(self, context: Any, work: Callable[[Any], Any]):
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, work), daemon=True)
        self._process.start()
        theirs.close()
        self.batch: _Batch | None = None
        self.is_ready = False
        self.last_heard = time.monotonic()

    def start(self, batch: _Batch) -> None:
        self.batch = batch
        self.last_heard = time.monotonic()
        try:
            self.connection.send(batch.items[len(batch.results) :])
        except OSError:
            pass  # it died while it waited; receive will tell

    def receive(self) -> None:
        """Take in all that has arrived."""
        while True:
            kind, value = self.connection.recv()
            self.last_heard = time.monotonic()
            if kind == "error":
                raise RuntimeError(f"in a worker process:\n{value}")
            if kind == _READY:
                self.is_ready = True
            else:
                assert self.batch is not None
                self.batch.results.append(value)
                self.batch.failures = 0
                if self.batch.is_done:
                    self.batch = None
            if not self.connection.poll():
                return

    def end(self) -> None:
        self.connection.close()
        self._process.kill()
        self._process.join()


def end_with_parent() -> None:
    """Let this process be killed when its parent is: else it would work on, and hold what the next start needs."""
    kill_me_too = 1  # PR_SET_PDEATHSIG
    if hasattr(system := ctypes.CDLL(None, use_errno=True), "prctl"):  # Linux; elsewhere the end of the pipe ends us
        system.prctl(kill_me_too, signal.SIGKILL)
    parent = multiprocessing.parent_process()
    assert parent is not None
    # It may have ended before the line above. Process 1 proves nothing: it is our parent in a container, and elsewhere
    # another may adopt us.
    if os.getppid() != parent.pid:
        sys.exit()


def _serve(connection: Connection, work: Callable[[Any], Any]) -> None:
    """A worker's life; it ends when the pipe does, or its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    end_with_parent()
    warnings.simplefilter("ignore")  # Pillow's remarks on odd metadata, one a picture
    try:
        connection.send((_READY, None))
        while True:
            for item in connection.recv():
                try:
                    answer = "result", work(item)
                except MemoryError:  # as if the system had killed us; the item is tried once more
                    os._exit(1)
                except Exception:  # a bug in `work`, told where it can be seen
                    answer = "error", traceback.format_exc()
                connection.send(answer)
    except (EOFError, OSError):
        return
