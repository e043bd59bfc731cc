"""Where work is done: in processes of this machine, or on a Ray cluster. The same results either way.

`map` is for work that is a function of its task (a WARC file, a unit of pairs). Work that sends messages while it has
several tasks in hand, as the building of shards does, uses `pool`.
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
    """What every engine can do."""

    processes: int
    """Processes that divide among them what this machine may ask of others; 1 on Ray, where each is for itself."""

    def map(
        self,
        work: Callable[[Task], Result],
        tasks: Sequence[Task],
        *,
        lost: Callable[[Task], Result] | None = None,
        may_crash: bool = False,
    ) -> Iterator[Result]:
        """The results of all tasks, in their order.

        A task whose process dies is given to another process once.

        work: a picklable function of a task.
        lost: makes the result of a task at which two processes died; without it that is an error.
        may_crash: the work may kill its process, as decoders of pictures do, and is never done in this one.

        Raises:
            UserError, OSError: what `work` raised; if several tasks failed, the error of the first of them.
            UserError: two processes died at a task.
        """

    def pool(self, work: Work, *, silence_seconds: float) -> Pool:
        """Workers that do this work, to be used in a `with` statement.

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
    """Ray tasks on the cluster at `address` (None: Ray decides); folders must be shared by its nodes."""

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
    """The error for something at which processes died, again and again."""
    way_out = "see whether memory runs out, then start the same command again"
    return UserError(f"processes were lost, again and again, at {what}; {way_out}")


def _answers(work: Callable[[Task], Result]) -> Work:
    return for_each(partial(_answer, work))


def _results(pool: Pool, tasks: Sequence[Task], lost: Callable[[Task], Result] | None) -> Iterator[Any]:
    """The results in order; an error is raised where its task's result would have been."""
    for result, error in results_in_order(pool, ([task] for task in tasks), give_up=partial(_give_up, lost)):
        if error is not None:
            raise error
        yield result


def _answer(work: Callable[[Task], Result], task: Task) -> tuple[Result | None, Exception | None]:
    try:
        return work(task), None
    except (UserError, OSError) as error:  # for the user, not a bug
        return None, error


def _give_up(lost: Callable[[Task], Result] | None, task: Task) -> tuple[Result | None, Exception | None]:
    return (None, lost_again(task)) if lost is None else (lost(task), None)
