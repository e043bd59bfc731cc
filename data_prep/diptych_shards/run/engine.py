"""Where work is done: in processes of this machine, or on a Ray cluster. The same bytes either way.

`map` is for work that is a function of its task (a WARC file, a unit of pairs). `build` is for shards, of which a
process fetches several at a time. What a lost process had in hand is given to another, a bounded number of times.
"""

from __future__ import annotations

import multiprocessing
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from diptych.errors import UserError
from diptych.extras import pip_install
from diptych_shards.run.worker_pool import CANNOT_START, MAX_FAILED_STARTS, Crew

if TYPE_CHECKING:
    from diptych_shards.shard_build.options import BuildOptions
    from diptych_shards.shard_build.shard import News, ShardBuilder, ShardReport, ShardTask

TASK_SECONDS = 6 * 3600.0
"""For one task of `map`: a large WARC file on a slow disk takes minutes."""
CONNECT_SECONDS = 10.0
"""To be heard at the address of a cluster."""
MAX_LOSSES = 5
"""Processes in a row that may be lost at a shard without a row finished; each row that kills its process takes two.
The same for processes in a row that do not even start.
"""
MAX_TASK_LOSSES = 2
"""Processes per task of `map`."""

Task = TypeVar("Task")
Result = TypeVar("Result")
Tell = Callable[["News"], None]


class EngineError(UserError):
    """The work cannot be done there; the message is one line for its user."""


class Engine(Protocol):
    """What every engine can do."""

    def map(
        self,
        work: Callable[[Task], Result],
        tasks: Sequence[Task],
        *,
        lost: Callable[[Task], Result] | None = None,
        may_crash: bool = False,
    ) -> Iterator[Result]:
        """The results in the tasks' order. `work` is a picklable function of its task.

        lost: the result of a task at which processes were lost, again and again; None: that is an error.
        may_crash: never in this very process, as decoders of pictures are not.

        Raises:
            ValueError, OSError: what `work` raises; the first of them by task.
            EngineError: processes were lost at a task.
        """

    def build(self, tasks: Iterable[ShardTask], out: Path, options: BuildOptions, tell: Tell) -> Iterator[ShardReport]:
        """Each shard when it is finished.

        Raises:
            OSError, ValueError: what a worker could not do (a full disk).
            EngineError: processes were lost at a shard, or cannot start.
        """


class LocalEngine:
    """`processes` worker processes on this machine."""

    def __init__(self, processes: int):
        self._processes = processes
        self._context = multiprocessing.get_context("spawn")

    def map(
        self,
        work: Callable[[Task], Result],
        tasks: Sequence[Task],
        *,
        lost: Callable[[Task], Result] | None = None,
        may_crash: bool = False,
    ) -> Iterator[Result]:
        processes = min(self._processes, len(tasks))
        if not tasks or (processes == 1 and not may_crash):
            yield from map(work, tasks)
            return
        give_up = partial(_give_up, lost)
        with Crew(partial(_answer, work), processes, give_up=give_up, silence_seconds=TASK_SECONDS) as crew:
            yield from map(_result_of, crew.map([task] for task in tasks))

    def build(self, tasks: Iterable[ShardTask], out: Path, options: BuildOptions, tell: Tell) -> Iterator[ShardReport]:
        from diptych_shards.shard_build.worker import Worker, heard

        share = max(1, options.fetch.per_host // self._processes)
        options = replace(options, fetch=replace(options.fetch, per_host=share))
        source = iter(tasks)
        again: deque[ShardTask] = deque()
        upcoming = next(source, None)  # read ahead, so that a worker's question is answered at once
        workers = [Worker(self._context, out, options) for _ in range(self._processes if upcoming else 0)]
        failed_starts = 0
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
                for worker in heard(workers):
                    is_lost = yield from worker.listen(tell)
                    failed_starts = 0 if worker.has_asked else failed_starts + is_lost
                    if failed_starts > MAX_FAILED_STARTS:
                        raise EngineError(CANNOT_START)
                    if is_lost:
                        again.extend(_after_loss(out, options, task) for task in worker.tasks.values())
                        workers[workers.index(worker)] = Worker(self._context, out, options)
        finally:
            for worker in workers:
                worker.kill()


class RayEngine:
    """One Ray task a shard, on the cluster at `address` (None: Ray decides); OUT must be shared by its nodes."""

    def __init__(self, address: str | None):
        self._address = address

    def map(
        self,
        work: Callable[[Task], Result],
        tasks: Sequence[Task],
        *,
        lost: Callable[[Task], Result] | None = None,
        may_crash: bool = False,
    ) -> Iterator[Result]:
        ray = self._connected()
        answer = ray.remote(_answer).options(num_cpus=1, max_retries=0)
        shared = ray.put(work)
        numbered = ((number, task, 0) for number, task in enumerate(tasks))
        early: dict[int, Any] = {}
        following = 0
        for one, result in self._carry_out(numbered, lambda one: answer.remote(shared, one[1]), _lost_again):
            number, task, _ = one
            early[number] = _give_up(lost, task) if isinstance(result, EngineError) else result
            while following in early:
                yield _result_of(early.pop(following))
                following += 1

    def build(self, tasks: Iterable[ShardTask], out: Path, options: BuildOptions, tell: Tell) -> Iterator[ShardReport]:
        ray = self._connected()
        build = ray.remote(_build_on_ray).options(num_cpus=1, max_retries=0)
        setup = ray.put((out.resolve(), options))
        lost = partial(_after_loss, out, options)
        for _, answer in self._carry_out(tasks, lambda task: build.remote(setup, task), lost):
            if isinstance(answer, EngineError):
                raise answer
            report, news = answer
            tell(news)
            yield report

    def _connected(self) -> Any:
        try:
            import ray
        except ImportError as error:
            raise EngineError(f"--engine ray needs Ray: {pip_install('ray')}") from error
        if not ray.is_initialized():
            _refuse_silent_address(self._address)
            try:
                ray.init(address=self._address, log_to_driver=False, configure_logging=False)
            except (ConnectionError, ValueError) as error:
                raise EngineError(f"no Ray cluster at {self._address}: {error}") from error
        return ray

    def _carry_out(
        self, tasks: Iterable[Task], submit: Callable[[Task], Any], after_loss: Callable[[Task], Task]
    ) -> Iterator[tuple[Task, Any]]:
        """Each task with its answer, as they come; an EngineError where `after_loss` gives up.

        after_loss: what to submit in place of a task whose process was lost. Ray's own retries would not tell us.
        """
        import ray

        source = iter(tasks)
        again: deque[Task] = deque()
        running: dict[Any, Task] = {}
        is_exhausted = False
        while True:
            # Back-pressure: no more tasks in the object store than the cluster soon has hands for.
            room = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
            while len(running) < room:
                task = again.popleft() if again else next(source, None)
                if task is None:
                    is_exhausted = True
                    break
                running[submit(task)] = task
            if not running and is_exhausted:
                return
            ready, _ = ray.wait(list(running), num_returns=1, timeout=5.0)
            for reference in ready:
                task = running.pop(reference)
                try:
                    answer = ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    raise error.as_instanceof_cause() from None
                except ray.exceptions.RayError:  # the worker died, or its node
                    try:
                        again.append(after_loss(task))
                    except EngineError as error:
                        yield task, error
                    continue
                yield task, answer


ENGINES = {"local": LocalEngine, "ray": RayEngine}


def _refuse_silent_address(address: str | None) -> None:
    """Ray itself asks for many minutes at an address where nobody listens.

    Raises:
        EngineError: nobody does.
    """
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise EngineError(f"no Ray cluster at {address}: {error}; start one there with `ray start`") from None


def _build_on_ray(setup: tuple[Path, BuildOptions], task: ShardTask) -> tuple[ShardReport, News]:
    from diptych_shards.shard_build.shard import News
    from diptych_shards.shard_build.worker import become_worker, end_without_memory

    total = News()

    def tell(news: News) -> None:
        nonlocal total
        total += news

    become_worker()
    builder = _kept_builder(*setup)
    builder.tell = tell
    try:
        (report,) = builder.build([task])
    except MemoryError:
        end_without_memory()
    return report, total


@lru_cache(maxsize=1)
def _kept_builder(out: Path, options: BuildOptions) -> ShardBuilder:
    """Ray runs many tasks in one process: connections and what is known of hosts stay."""
    from diptych_shards.shard_build.shard import ShardBuilder

    return ShardBuilder(out, options)


def _answer(work: Callable[[Task], Result], task: Task) -> tuple[Result | None, Exception | None]:
    try:
        return work(task), None
    except (UserError, OSError) as error:  # for the user, not a bug
        return None, error


def _result_of(answer: tuple[Any, Exception | None]) -> Any:
    result, error = answer
    if error is not None:
        raise error
    return result


def _give_up(lost: Callable[[Any], Any] | None, task: Any) -> tuple[Any, Exception | None]:
    """The answer for a task at which processes were lost."""
    if lost is not None:
        return lost(task), None
    return None, EngineError(f"{_LOST} {task}; {_WAY_OUT}")


def _lost_again(numbered: tuple[int, Any, int]) -> tuple[int, Any, int]:
    number, task, losses = numbered
    if losses + 1 == MAX_TASK_LOSSES:
        raise EngineError(f"{_LOST} {task}; {_WAY_OUT}")
    return number, task, losses + 1


_LOST = "processes were lost, again and again, at"
_WAY_OUT = "see whether memory runs out, then start the same command again"


def _after_loss(out: Path, options: BuildOptions, task: ShardTask) -> ShardTask:
    """The shard for another process to go on with."""
    from diptych_shards.shard_build.shard import journal_path

    journal = journal_path(out, task.number, options)
    num_bytes = journal.stat().st_size if journal.exists() else 0
    losses = 1 if num_bytes > task.journal_bytes else task.losses + 1
    if losses > MAX_LOSSES:
        raise EngineError(f"{_LOST} shard {task.number}; {_WAY_OUT}")
    return replace(task, losses=losses, journal_bytes=num_bytes)
