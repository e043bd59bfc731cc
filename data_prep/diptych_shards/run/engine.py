"""Do work in processes of this machine or on a Ray cluster, with the same results.

`map` applies a function to each task (a WARC file, a unit of pairs). `pool` is for work that handles several tasks at
once and sends messages meanwhile, such as building shards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

from diptych.errors import UserError
from diptych_shards.run.ray_pool import RayPool
from diptych_shards.run.worker_pool import TASK_SILENCE_SECONDS, Pool, Work, WorkerPool, for_each, results_in_order

Task = TypeVar("Task")
Result = TypeVar("Result")


class Engine(Protocol):
    """The interface of all engines."""

    processes: int
    """How many processes share the limits of this machine; 1 on Ray, where a process has its own limits."""

    def map(
        self,
        work: Callable[[Task], Result],
        tasks: Sequence[Task],
        *,
        lost: Callable[[Task], Result] | None = None,
        may_crash: bool = False,
    ) -> Iterator[Result]:
        """Apply `work` to all tasks, and yield the results in the order of the tasks.

        If the process of a task dies, another process tries the task once more.

        work: a picklable function of a task.
        lost: makes the result of a task that two processes died of; without it, that is an error.
        may_crash: `work` may kill its process, as decoders of pictures can, so it never runs in this one.

        Raises:
            UserError, OSError: `work` raised it; if several tasks failed, this is the error of the first of them.
            UserError: two processes died of a task, and there is no `lost`.
        """

    def pool(self, work: Work, *, silence_seconds: float) -> Pool:
        """Start workers that do this work; use them in a `with` statement.

        silence_seconds: how long a process of this machine may send nothing before it is replaced.
        """


class LocalEngine:
    """`processes` worker processes on this machine."""

    def __init__(self, processes: int):
        self.processes = processes

    def map(
        self,
        work: Callable[[Task], Result],
        tasks: Sequence[Task],
        *,
        lost: Callable[[Task], Result] | None = None,
        may_crash: bool = False,
    ) -> Iterator[Result]:
        processes = min(self.processes, len(tasks))
        if not tasks or (processes == 1 and not may_crash):
            yield from map(work, tasks)
            return
        with WorkerPool(_answers(work), processes, silence_seconds=TASK_SILENCE_SECONDS) as pool:
            yield from _results(pool, tasks, lost)

    def pool(self, work: Work, *, silence_seconds: float) -> Pool:
        return WorkerPool(work, self.processes, silence_seconds=silence_seconds)


class RayEngine:
    """Ray tasks on the cluster at `address` (None: the one that Ray finds), whose nodes must share all folders."""

    processes = 1

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
        with RayPool(_answers(work), self._address) as pool:
            yield from _results(pool, tasks, lost)

    def pool(self, work: Work, *, silence_seconds: float) -> Pool:
        return RayPool(work, self._address)


def lost_again(what: object) -> UserError:
    """The error for a task that cost its process again and again."""
    way_out = "see whether memory runs out, then start the same command again"
    return UserError(f"processes were lost, again and again, at {what}; {way_out}")


def _answers(work: Callable[[Task], Result]) -> Work:
    return for_each(partial(_answer, work))


def _results(pool: Pool, tasks: Sequence[Task], lost: Callable[[Task], Result] | None) -> Iterator[Any]:
    """Yield the results in order; an error is raised in place of the result of its task."""
    for result, error in results_in_order(pool, ([task] for task in tasks), give_up=partial(_give_up, lost)):
        if error is not None:
            raise error
        yield result


def _answer(work: Callable[[Task], Result], task: Task) -> tuple[Result | None, Exception | None]:
    """The result of a task, or its error if that is for the user."""
    try:
        return work(task), None
    except (UserError, OSError) as error:
        return None, error


def _give_up(lost: Callable[[Task], Result] | None, task: Task) -> tuple[Result | None, Exception | None]:
    return (None, lost_again(task)) if lost is None else (lost(task), None)
