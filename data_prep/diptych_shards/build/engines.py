"""Where shards are built: in processes of this machine, or on a Ray cluster. The same bytes either way.

A task is a shard. What a lost process had in hand is given to another, with the number of losses, so that a row that
kills its process can be told from bad luck; the journal beside the shard keeps what was finished.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import replace
from functools import lru_cache
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from diptych_shards.build.options import BuildError, BuildOptions
from diptych_shards.build.shard import News, ShardBuilder, ShardReport, ShardTask

SILENCE_SECONDS = 300.0
"""A worker tells news twice a second; one that says nothing for so long hangs."""
MAX_LOSSES = 10
"""Per shard; each row that kills its process takes two."""

Tell = Callable[[News], None]


class LocalEngine:
    """`processes` worker processes on this machine."""

    def __init__(self, processes: int):
        self._processes = processes
        self._context = multiprocessing.get_context("spawn")

    def run(self, tasks: Iterable[ShardTask], out: Path, options: BuildOptions, tell: Tell) -> Iterator[ShardReport]:
        """Each shard when it is finished.

        Raises:
            OSError, ValueError: what a worker could not do (a full disk).
        """
        source = iter(tasks)
        again: deque[ShardTask] = deque()
        upcoming = next(source, None)  # read ahead, so that a worker's question is answered at once
        workers = [_Worker(self._context, out, options) for _ in range(self._processes if upcoming else 0)]
        try:
            while workers:
                for worker in workers:
                    if not worker.is_asking:
                        continue
                    if again:
                        worker.give(again.popleft())
                    elif upcoming is not None:
                        worker.give(upcoming)
                        upcoming = next(source, None)
                    elif not worker.tasks and all(not other.tasks for other in workers):
                        worker.end()
                    elif worker.tasks:
                        worker.give(None)  # nothing for now; finish what you have, then ask again
                workers = [worker for worker in workers if not worker.has_ended]
                for worker in _heard(workers):
                    is_lost = yield from worker.listen(tell)
                    if is_lost:
                        again.extend(_after_loss(task) for task in worker.tasks.values())
                        workers[workers.index(worker)] = _Worker(self._context, out, options)
        finally:
            for worker in workers:
                worker.kill()


class RayEngine:
    """One Ray task a shard, on the cluster at `address` (None: Ray decides); OUT must be shared by its nodes."""

    def __init__(self, address: str | None):
        self._address = address

    def run(self, tasks: Iterable[ShardTask], out: Path, options: BuildOptions, tell: Tell) -> Iterator[ShardReport]:
        try:
            import ray
        except ImportError as error:
            raise BuildError("--engine ray needs Ray: pip install 'diptych[ray]'") from error
        if not ray.is_initialized():
            ray.init(address=self._address, log_to_driver=False, configure_logging=False)
        # We retry ourselves, to know how many processes a shard has cost.
        build = ray.remote(_build_on_ray).options(num_cpus=1, max_retries=0)
        setup = ray.put((out.resolve(), options))
        source = iter(tasks)
        again: deque[ShardTask] = deque()
        running: dict[Any, ShardTask] = {}
        is_exhausted = False
        while True:
            # Back-pressure: no more rows in the object store than the cluster soon has hands for.
            room = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
            while len(running) < room:
                task = again.popleft() if again else next(source, None)
                if task is None:
                    is_exhausted = True
                    break
                running[build.remote(setup, task)] = task
            if not running:
                if is_exhausted and not again:
                    return
                continue
            ready, _ = ray.wait(list(running), num_returns=1, timeout=5.0)
            for reference in ready:
                task = running.pop(reference)
                try:
                    report, news = ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    raise error.as_instanceof_cause() from None
                except ray.exceptions.RayError:  # the worker died, or its node
                    again.append(_after_loss(task))
                    continue
                tell(news)
                yield report


ENGINES = {"local": LocalEngine, "ray": RayEngine}


def _build_on_ray(setup: tuple[Path, BuildOptions], task: ShardTask) -> tuple[ShardReport, News]:
    total = News()

    def tell(news: News) -> None:
        nonlocal total
        total += news

    _become_worker()
    builder = _kept_builder(*setup)
    builder.tell = tell
    (report,) = builder.build([task])
    return report, total


@lru_cache(maxsize=1)
def _kept_builder(out: Path, options: BuildOptions) -> ShardBuilder:
    """Ray runs many tasks in one process: connections and what is known of hosts stay."""
    return ShardBuilder(out, options)


def _after_loss(task: ShardTask) -> ShardTask:
    if task.losses == MAX_LOSSES:
        raise BuildError(
            f"shard {task.number}: {MAX_LOSSES + 1} processes were lost at it; see whether memory runs out, "
            f"then start the same command again"
        )
    return replace(task, losses=task.losses + 1)


def _heard(workers: list[_Worker]) -> list[_Worker]:
    """Those with something to say, perhaps that they are gone."""
    if not workers:
        return []
    for worker in workers:
        if worker.tasks and time.monotonic() - worker.last_heard > SILENCE_SECONDS:
            worker.end_process()
    ready = wait([worker.connection for worker in workers], timeout=1.0)
    return [worker for worker in workers if worker.connection in ready]


class _Worker:
    """One process, and the shards it is at."""

    def __init__(self, context: Any, out: Path, options: BuildOptions):
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, out, options), daemon=True)
        self._process.start()
        theirs.close()
        self.tasks: dict[int, ShardTask] = {}
        self.is_asking = False
        self.has_ended = False
        self.last_heard = time.monotonic()

    def give(self, task: ShardTask | None) -> None:
        if task is not None:
            self.tasks[task.number] = task
        self.is_asking = False
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
                self.last_heard = time.monotonic()
                if kind == "ask":
                    self.is_asking = True
                elif kind == "news":
                    tell(value)
                elif kind == "done":
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


def _serve(connection: Connection, out: Path, options: BuildOptions) -> None:
    """A worker's life; it ends when it is told to, or when the pipe does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    _become_worker()
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

    builder = ShardBuilder(out, options, tell=lambda news: connection.send(("news", news)))
    try:
        while not is_over:
            for report in builder.build(tasks()):
                connection.send(("done", report))
    except (EOFError, ConnectionError):
        return
    except (ValueError, OSError) as error:
        connection.send(("mistake", error))
    except Exception:  # a bug, told where it can be seen
        connection.send(("bug", traceback.format_exc()))


def _become_worker() -> None:
    warnings.simplefilter("ignore")  # Pillow's remarks on odd metadata, one a picture
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
