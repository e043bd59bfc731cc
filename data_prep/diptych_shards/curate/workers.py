"""The same work for many tasks, here or in processes of this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

from diptych_shards.crew import Crew
from diptych_shards.curate.options import CurateError

Task = TypeVar("Task")
Result = TypeVar("Result")

SILENCE_SECONDS = 1800.0
"""A unit takes seconds; a language model on a slow disk, a minute."""


def map_tasks(work: Callable[[Task], Result], tasks: Sequence[Task], processes: int) -> Iterator[Result]:
    """The results, in the tasks' order, whatever the number of processes.

    Raises:
        ValueError, OSError: what `work` raises; the first of them by task.
    """
    processes = min(processes, len(tasks))
    if processes <= 1:
        yield from map(work, tasks)
        return
    with Crew(partial(_answer, work), processes, give_up=_give_up, silence_seconds=SILENCE_SECONDS) as crew:
        for result, error in crew.map([task] for task in tasks):
            if error is not None:
                raise error
            yield result


def _answer(work: Callable[[Task], Result], task: Task) -> tuple[Result | None, Exception | None]:
    try:
        return work(task), None
    except (ValueError, OSError) as error:  # for the user, not a bug
        return None, error


def _give_up(task: Any) -> Any:
    raise CurateError(f"two processes were lost at {task}; see whether memory runs out, then start the command again")
