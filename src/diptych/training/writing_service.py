"""The process that writes a rank's share of each checkpoint, while the rank goes on training.

The rank copies its share to memory that both processes see, and sends a `Task`; once every rank's files are written,
rank 0 sends a `Commit`. If the disk is full, older checkpoints are removed, and the write is tried again until it
succeeds or the rank ends this process.

`main` takes two open file descriptors as arguments: of the connection to the rank, and of the memory. The process ends
as soon as the rank has ended, whatever it is doing. It does not import torch.
"""

from __future__ import annotations

import errno
import itertools
import mmap
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from diptych.checkpoint_folder import CheckpointError
from diptych.files import lacks_room
from diptych.training.checkpoint_writer import Writer
from diptych.training.writing_orders import Failed, Kept, MakeRoom, Task, Warned, Written

PAUSES = (1, 2, 4, 8, 16, 32, 60)
"""Seconds between attempts to write to a full disk; the last one repeats."""
PRIORITY = 10
"""The niceness of this process: training goes first where both want the same core."""


class _Orders:
    """What the rank sends; the process ends as soon as the rank has ended, in whatever it is doing."""

    def __init__(self, connection: Connection):
        self._connection = connection
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    def next(self, timeout_seconds: float | None = None) -> Any:
        """The next order; None after `timeout_seconds`."""
        with suppress(queue.Empty):
            return self._queue.get(timeout=timeout_seconds)
        return None

    def _listen(self) -> None:
        try:
            while True:
                self._queue.put(self._connection.recv())
        except (EOFError, OSError):
            os._exit(1)


def serve(connection: Connection, memory: memoryview) -> None:
    """Do what the rank asks for until it ends."""
    orders = _Orders(connection)
    writer = Writer(orders.next(), memory)
    task, written = Task("", {}), Written({})
    while True:
        order = orders.next()
        if isinstance(order, Task):
            task = order
            written = _until_it_works(writer, partial(writer.write, task), orders, connection)
            connection.send(written)
        elif isinstance(order, MakeRoom):
            _make_room(writer, connection)
        else:
            connection.send(_until_it_works(writer, partial(writer.commit, task, written, order), orders, connection))
            try:
                writer.keep_newest(writer.plan.keep)
            except OSError as error:
                connection.send(Warned(f"older checkpoints cannot be removed: {error}"))
            connection.send(Kept())


def _until_it_works(writer: Writer, attempt: Callable[[], Any], orders: _Orders, connection: Connection) -> Any:
    """Repeat an attempt until it succeeds, with pauses that grow; older checkpoints make room for it."""
    pauses = itertools.chain(PAUSES, itertools.repeat(PAUSES[-1]))
    while True:
        try:
            return attempt()
        except OSError as error:
            if lacks_room(error) and writer.plan.rank == 0 and _make_room(writer, connection):
                continue
            connection.send(Failed(writer.describe(error), lacks_room(error)))
        except CheckpointError as error:
            connection.send(Failed(str(error), False))
        if isinstance(orders.next(next(pauses)), MakeRoom):
            _make_room(writer, connection)


def _make_room(writer: Writer, connection: Connection) -> bool:
    """Remove all checkpoints but the newest valid one; whether there were others."""
    try:
        removed = writer.keep_newest(1)
    except OSError:
        return False
    if removed:
        connection.send(
            Warned(f"{writer.plan.folder}: {os.strerror(errno.ENOSPC)}; removed all checkpoints but the newest")
        )
    return bool(removed)


def main() -> None:
    handle, descriptor = map(int, sys.argv[1:])
    # A scheduler sends these to all processes of a job; the rank decides what they mean, and this process serves it.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    os.nice(PRIORITY)
    memory = mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)
    with suppress(BrokenPipeError):
        serve(Connection(handle), memoryview(memory))
