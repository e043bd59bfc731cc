"""The processes of this machine that build shards, and what is said over their pipes.

A worker asks for shards as long as it has hands for them, tells its news, and hands in reports; it has several shards
at once, as the slow hosts of one are waited for while the next is fetched.
"""

from __future__ import annotations

import os
import signal
import time
import traceback
import warnings
from collections.abc import Callable, Generator, Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from diptych.errors import UserError
from diptych_shards.run.worker_pool import end_with_parent

if TYPE_CHECKING:
    from diptych_shards.shard_build.options import BuildOptions
    from diptych_shards.shard_build.shard import News, ShardReport, ShardTask

SILENCE_SECONDS = 300.0
"""A worker tells news twice a second; one that says nothing for so long hangs. Not so while it is at files: they take
the time that the disk takes, and no kill would end the wait for one that hangs.
"""

Tell = Callable[["News"], None]


class Worker:
    """One process, and the shards it is at."""

    def __init__(self, context: Any, out: Path, options: BuildOptions):
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, out, options), daemon=True)
        self._process.start()
        theirs.close()
        self.tasks: dict[int, ShardTask] = {}
        self.is_asking = False
        self.has_asked = False
        """Once, at least; one that is lost before could not start."""
        self.has_ended = False
        self._is_at_files = False
        self._last_heard = time.monotonic()

    @property
    def hangs(self) -> bool:
        """It has work and says nothing; what waits to be read was said while we were held up, as by Ctrl-S."""
        is_silent = time.monotonic() - self._last_heard > SILENCE_SECONDS
        return bool(self.tasks) and is_silent and not self._is_at_files and not self.connection.poll()

    def give(self, task: ShardTask | None) -> None:
        if task is not None:
            self.tasks[task.number] = task
        self.is_asking = False
        self._last_heard = time.monotonic()
        self._send(task)

    def end(self) -> None:
        """Nothing is left to do."""
        self._send("end")
        self._process.join()
        self.connection.close()
        self.has_ended = True

    def listen(self, tell: Tell) -> Generator[ShardReport, None, bool]:
        """Take in all that has arrived; true if the process is gone."""
        try:
            while self.connection.poll():
                kind, value = self.connection.recv()
                self._last_heard = time.monotonic()
                if kind == "ask":
                    self.is_asking = self.has_asked = True
                elif kind == "news":
                    self._is_at_files = value.at_files
                    for (number, outcome), count in value.finished.items():
                        self.tasks[number].told[outcome] += count
                    tell(value)
                elif kind == "done":
                    self._is_at_files = False
                    del self.tasks[value.number]
                    yield value
                elif kind == "mistake":
                    raise value
                else:
                    raise RuntimeError(f"in a worker process:\n{value}")
        except (EOFError, ConnectionError):
            self.kill()
            return True
        return False

    def end_process(self) -> None:
        self._process.kill()
        self._process.join()

    def kill(self) -> None:
        self.end_process()
        self.connection.close()

    def _send(self, message: Any) -> None:
        try:
            self.connection.send(message)
        except OSError:
            pass  # it died while it waited; listening will tell


def heard(workers: list[Worker]) -> list[Worker]:
    """Those with something to say, perhaps that they are gone."""
    if not workers:
        return []
    for worker in workers:
        if worker.hangs:
            worker.end_process()
    ready = wait([worker.connection for worker in workers], timeout=1.0)
    return [worker for worker in workers if worker.connection in ready]


def _serve(connection: Connection, out: Path, options: BuildOptions) -> None:
    """A worker's life; it ends when it is told to, or when the pipe does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    from diptych_shards.shard_build.shard import ShardBuilder, ShardTask

    become_worker()
    end_with_parent()
    is_over = False

    def tasks() -> Iterator[ShardTask]:
        nonlocal is_over
        while True:
            connection.send(("ask", None))
            task = connection.recv()
            if task == "end":
                is_over = True
            if not isinstance(task, ShardTask):
                return
            yield task

    try:
        builder = ShardBuilder(out, options, tell=lambda news: connection.send(("news", news)))
        while not is_over:
            for report in builder.build(tasks()):
                connection.send(("done", report))
    except (EOFError, ConnectionError):
        return
    except (UserError, OSError) as error:
        connection.send(("mistake", error))
    except MemoryError:
        end_without_memory()
    except Exception:  # a bug, told where it can be seen
        connection.send(("bug", traceback.format_exc()))


def end_without_memory() -> NoReturn:
    """End as if the system had killed this process: another takes up the journal, where the row it was at is marked."""
    os._exit(1)


def become_worker() -> None:
    warnings.simplefilter("ignore")  # Pillow's remarks on odd metadata, one a picture
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
