"""Worker processes of this machine: each is given tasks when it asks for them, and sends messages.

`multiprocessing.Pool` waits forever for a process that died. Here each process has a pipe of its own, and is replaced
when it dies or falls silent; the reader of the messages decides what happens to its tasks.
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
"""What a process does: `work(tasks, send)` takes a task whenever it is ready for one, and sends messages.

`tasks` ends if there is no task at the moment: the work finishes those that it has, and is then called again.
"""

PICTURE_SILENCE_SECONDS = 120.0
"""For work on single pictures: no sound picture of 64 megapixels takes longer; a decoder that hangs does."""
NEWS_SILENCE_SECONDS = 300.0
"""For work that sends a message twice a second."""
TASK_SILENCE_SECONDS = 6 * 3600.0
"""For work that sends nothing but results: a large WARC file on a slow disk takes minutes."""
MAX_FAILED_STARTS = 5
"""How many processes in a row may end before they have started."""
MAX_ITEM_LOSSES = 2
"""How many processes may be lost at one item of `results_in_order`; then it is given up."""
CANNOT_START = (
    "worker processes end before they have started: the reason is printed above, or memory runs out; "
    "a script must call this under `if __name__ == '__main__':`"
)
PROCESSES = multiprocessing.get_context("spawn")
"""A fork would inherit locks that other threads hold, and open connections."""
LOST = object()
"""Received in place of a message from a process that died or fell silent."""

_ASK, _MESSAGE, _MISTAKE, _BUG = "ask", "message", "mistake", "bug"


class Worker(Protocol):
    """One process, as seen by the code that gives it tasks."""

    may_be_silent: bool
    """Set it to allow silence until the next message, for however long."""

    def give(self, task: Any) -> None:
        """Answer a worker that asks for a task. None: there is none now; it finishes those it has, then asks again."""


class Pool(Protocol):
    """Workers: processes of this machine, or tasks on Ray."""

    @property
    def size(self) -> int:
        """How many tasks to give out at a time."""

    def asking(self) -> Sequence[Worker]:
        """The workers that wait for a task."""

    def messages(self) -> Iterator[tuple[Worker, Any]]:
        """Yield what workers have sent, or `LOST`, each with its worker; wait a short time for the first.

        Raises:
            UserError, OSError: the work raised it.
            RuntimeError: the work has a bug; the message is the traceback of its process.
            UserError: processes cannot start.
        """

    def __enter__(self) -> Pool: ...
    def __exit__(self, *exception: object) -> None: ...


class WorkerPool:
    """`size` processes that do the same work: `with WorkerPool(work, size, silence_seconds=…) as pool`."""

    def __init__(self, work: Work, size: int, *, silence_seconds: float):
        """Start the processes.

        silence_seconds: how long a process that starts or has a task may send nothing before it is replaced.
        """
        self.size = size
        self._work = work
        self._silence_seconds = silence_seconds
        self._failed_starts = 0
        self._workers = [_Process(work) for _ in range(size)]

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
        self._workers[self._workers.index(worker)] = _Process(self._work)


class _Process:
    """A process, and our end of the pipe to it."""

    def __init__(self, work: Work):
        self.connection, theirs = PROCESSES.Pipe()
        self._process = PROCESSES.Process(target=_live, args=(theirs, work), daemon=True)
        self._process.start()
        theirs.close()
        self.is_asking = False
        self.has_started = False
        """Whether it has ever sent anything."""
        self.may_be_silent = False
        self._last_heard = time.monotonic()

    def is_silent(self, seconds: float) -> bool:
        """Whether it has sent nothing for so long; unread messages count as sent, since we may have been stopped."""
        is_late = time.monotonic() - self._last_heard > seconds
        return is_late and not self.is_asking and not self.may_be_silent and not self.connection.poll()

    def give(self, task: Any) -> None:
        self.is_asking = False
        self._last_heard = time.monotonic()
        try:
            self.connection.send(task)
        except OSError:
            pass  # it died while it waited; `receive` will return `LOST`

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
    """Some items, and the results so far, in the order of the items."""

    items: Sequence[Item]
    results: list[Result] = field(default_factory=list)
    losses: int = 0
    """How often a process was lost at the first item without a result."""

    @property
    def is_done(self) -> bool:
        return len(self.results) == len(self.items)


def for_each(work: Callable[[Item], Result]) -> Work:
    """Make the work of a pool for `results_in_order`: it applies `work` to each item of its batches."""
    return partial(_apply, work)


def results_in_order(
    pool: Pool, batches: Iterable[Sequence[Item]], *, give_up: Callable[[Item], Result]
) -> Iterator[Result]:
    """Yield the results of all items, in their order; at most three batches per process are in memory.

    give_up: makes the result of an item that two processes were lost at.

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
    """Count the loss of a process at this batch; return whether the batch is now done."""
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
    """Let the system kill this process when its parent ends, or it would run on and hold what the next run needs."""
    kill_me_too = 1  # PR_SET_PDEATHSIG
    if hasattr(system := ctypes.CDLL(None, use_errno=True), "prctl"):  # Linux; elsewhere we end when the pipe does
        system.prctl(kill_me_too, signal.SIGKILL)
    parent = multiprocessing.parent_process()
    assert parent is not None
    # It may have ended before the call above. That our parent is process 1 proves nothing: in a container it may have
    # started us, and elsewhere a process of another number may have adopted us.
    if os.getppid() != parent.pid:
        sys.exit()


def do_work(work: Work, tasks: Iterator[Any], send: Callable[[Any], None]) -> None:
    """Do the work in a process that may be lost: if memory runs out, it ends as if the system had killed it."""
    warnings.simplefilter("ignore")  # Pillow warns about odd metadata, in many pictures
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    try:
        work(tasks, send)
    except MemoryError:
        os._exit(1)


def _live(connection: Connection, work: Work) -> None:
    """Ask for tasks and do the work, until this process is killed or its parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    end_with_parent()

    def send(kind: str, value: Any = None) -> None:
        try:
            connection.send((kind, value))
        except OSError:  # the parent has ended
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
    except Exception:  # a bug: the parent raises it
        send(_BUG, traceback.format_exc())
