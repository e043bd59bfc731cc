"""Worker processes of this machine: each is given tasks when it asks for them, and sends messages.

`multiprocessing.Pool` waits forever for a process that died. Here each process has a pipe of its own, and is replaced
when it dies or falls silent; whoever listens decides what becomes of the tasks that it had.
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
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, Protocol, TypeVar

from diptych.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")
Work = Callable[[Iterator[Any], Callable[[Any], None]], None]
"""What a process does: `work(tasks, send)` takes tasks, each when it is ready for one more, and sends messages.

The tasks end when there is none for now and the process has others in hand; the work is then called once more.
"""

PICTURE_SILENCE_SECONDS = 120.0
"""No honest picture of 64 megapixels takes longer; a decoder that hangs does."""
NEWS_SILENCE_SECONDS = 300.0
"""For work that sends news twice a second."""
TASK_SILENCE_SECONDS = 6 * 3600.0
"""For work that sends nothing but results: a large WARC file on a slow disk takes minutes."""
MAX_FAILED_STARTS = 5
"""In a row."""
MAX_ITEM_LOSSES = 2
"""Processes that one item of `results_in_order` may cost."""
CANNOT_START = (
    "worker processes end before they have started: they said why, above, or memory runs out; "
    "a script must call this under `if __name__ == '__main__':`"
)
LOST = object()
"""In place of a message: the process died or fell silent."""

_ASK, _MESSAGE, _MISTAKE, _BUG = "ask", "message", "mistake", "bug"


class Worker(Protocol):
    """One process, as whoever gives it tasks sees it."""

    may_be_silent: bool
    """Until its next message, however long that takes."""

    def give(self, task: Any) -> None:
        """Answer a worker that asks for a task. None: there is none for now; finish what you have, then ask again."""


class Pool(Protocol):
    """Workers, wherever they are: in processes of this machine, or on Ray."""

    @property
    def size(self) -> int:
        """Tasks that are worked on at a time."""

    def asking(self) -> Sequence[Worker]:
        """The workers that wait for a task."""

    def messages(self) -> Iterator[tuple[Worker, Any]]:
        """What workers have sent, or `LOST`, after a short wait for the first.

        Raises:
            UserError, OSError: what the work raised.
            RuntimeError: a bug in the work, with the traceback of its process.
            UserError: processes cannot start.
        """

    def __enter__(self) -> Pool: ...
    def __exit__(self, *exception: object) -> None: ...


class WorkerPool:
    """`size` processes that do the same work: `with WorkerPool(work, size, silence_seconds=…) as pool`."""

    def __init__(self, work: Work, size: int, *, silence_seconds: float):
        """silence_seconds: how long a process that has a task, or starts, may send nothing before it is replaced."""
        self.size = size
        self._work = work
        self._silence_seconds = silence_seconds
        self._failed_starts = 0
        self._context = multiprocessing.get_context("spawn")
        self._workers = [_Process(self._context, work) for _ in range(size)]

    def asking(self) -> list[_Process]:
        return [worker for worker in self._workers if worker.is_asking]

    def messages(self) -> Iterator[tuple[_Process, Any]]:
        for worker in self._workers:
            if worker.is_silent(self._silence_seconds):
                worker.kill()
        ready = wait([worker.connection for worker in self._workers], timeout=1.0)
        for worker in [worker for worker in self._workers if worker.connection in ready]:
            while (received := worker.receive()) is not None:
                if received is LOST:
                    self._replace(worker)
                    yield worker, LOST
                    break
                self._failed_starts = 0
                kind, message = received
                if kind == _MESSAGE:
                    yield worker, message
                elif kind == _MISTAKE:
                    raise message
                elif kind == _BUG:
                    raise RuntimeError(f"in a worker process:\n{message}")

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *exception: object) -> None:
        for worker in self._workers:
            worker.end()

    def _replace(self, worker: _Process) -> None:
        worker.end()
        if not worker.has_started:
            self._failed_starts += 1
        if self._failed_starts > MAX_FAILED_STARTS:
            raise UserError(CANNOT_START)
        self._workers[self._workers.index(worker)] = _Process(self._context, self._work)


class _Process:
    """A process, and our end of the pipe to it."""

    def __init__(self, context: Any, work: Work):
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_live, args=(theirs, work), daemon=True)
        self._process.start()
        theirs.close()
        self.is_asking = False
        self.has_started = False
        """It has sent something, at least once."""
        self.may_be_silent = False
        self._last_heard = time.monotonic()

    def is_silent(self, seconds: float) -> bool:
        """Whether it sent nothing for so long. What waits to be read was sent while we were held up, as by Ctrl-S."""
        is_late = time.monotonic() - self._last_heard > seconds
        return is_late and not self.is_asking and not self.may_be_silent and not self.connection.poll()

    def give(self, task: Any) -> None:
        self.is_asking = False
        self._last_heard = time.monotonic()
        try:
            self.connection.send(task)
        except OSError:
            pass  # it died while it waited; `receive` will say so

    def receive(self) -> Any:
        """Kind and value of its next message; None if none has arrived, `LOST` if the process is gone."""
        try:
            if not self.connection.poll():
                return None
            received = self.connection.recv()
        except (EOFError, OSError):
            return LOST
        self._last_heard = time.monotonic()
        self.has_started = True
        self.may_be_silent = False
        self.is_asking = received[0] == _ASK
        return received

    def kill(self) -> None:
        self._process.kill()
        self._process.join()

    def end(self) -> None:
        self.kill()
        self.connection.close()


@dataclass
class _Batch(Generic[Item, Result]):
    """Some items, and the results of the first of them."""

    items: Sequence[Item]
    results: list[Result] = field(default_factory=list)
    losses: int = 0
    """How often a process was lost at the first item without a result."""

    @property
    def is_done(self) -> bool:
        return len(self.results) == len(self.items)


def for_each(work: Callable[[Item], Result]) -> Work:
    """The work of a pool for `results_in_order`: applies `work` to each item of its batches."""
    return partial(_apply, work)


def results_in_order(
    pool: Pool, batches: Iterable[Sequence[Item]], *, give_up: Callable[[Item], Result]
) -> Iterator[Result]:
    """The results of all items, in their order; at most three batches per process are in memory.

    give_up: the result of an item at which a process was lost twice.

    Raises:
        Exception: see `Pool.messages`.
    """
    source = iter(batches)
    waiting: deque[_Batch[Item, Result]] = deque()  # taken from the source, result not yet given out
    unassigned: deque[_Batch[Item, Result]] = deque()
    assigned: dict[Worker, _Batch[Item, Result]] = {}
    while True:
        while len(waiting) < 3 * pool.size and (items := next(source, None)) is not None:
            waiting.append(_Batch(items))
            unassigned.append(waiting[-1])
        if not waiting:
            return
        for worker in pool.asking()[: len(unassigned)]:
            batch = assigned[worker] = unassigned.popleft()
            worker.give(batch.items[len(batch.results) :])
        for worker, message in pool.messages():
            if message is LOST:
                lost = assigned.pop(worker, None)
                if lost is not None and not _note_loss(lost, give_up):
                    unassigned.appendleft(lost)
                continue
            batch = assigned[worker]
            batch.results.append(message)
            batch.losses = 0
            if batch.is_done:
                del assigned[worker]
        while waiting and waiting[0].is_done:
            yield from waiting.popleft().results


def _note_loss(batch: _Batch[Item, Result], give_up: Callable[[Item], Result]) -> bool:
    """Count the loss of a process at this batch; whether the batch is done with that."""
    batch.losses += 1
    if batch.losses == MAX_ITEM_LOSSES:
        batch.results.append(give_up(batch.items[len(batch.results)]))
        batch.losses = 0
    return batch.is_done


def _apply(work: Callable[[Any], Any], batches: Iterator[Sequence[Any]], send: Callable[[Any], None]) -> None:
    for batch in batches:
        for item in batch:
            send(work(item))


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


def do_work(work: Work, tasks: Iterator[Any], send: Callable[[Any], None]) -> None:
    """Do the work as a process does that may be lost: out of memory, it ends as if the system had killed it."""
    warnings.simplefilter("ignore")  # Pillow's remarks on odd metadata, one a picture
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    try:
        work(tasks, send)
    except MemoryError:
        os._exit(1)


def _live(connection: Connection, work: Work) -> None:
    """A process's life; it ends when it is killed, or with its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    end_with_parent()

    def send(kind: str, value: Any = None) -> None:
        try:
            connection.send((kind, value))
        except OSError:  # nobody listens any more
            os._exit(0)

    def tasks() -> Iterator[Any]:
        while True:
            send(_ASK)
            try:
                task = connection.recv()
            except (EOFError, OSError):
                os._exit(0)
            if task is None:
                return
            yield task

    try:
        while True:
            do_work(work, tasks(), partial(send, _MESSAGE))
    except (UserError, OSError) as error:  # for the user
        send(_MISTAKE, error)
    except Exception:  # a bug, sent to where it can be seen
        send(_BUG, traceback.format_exc())
