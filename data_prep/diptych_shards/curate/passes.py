"""One pass over something: the same work for each, on whatever engine, with a bar that tells how far it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from diptych_shards.run.engine import Engine
from diptych_shards.run.progress import Progress

Task = TypeVar("Task")
Result = TypeVar("Result")


def each(engine: Engine, work: Callable[[Task], Result], tasks: Sequence[Task], what: str) -> Iterator[Result]:
    """The results in the tasks' order. what: the tasks, as in `parts written`."""
    progress = Progress(len(tasks), what)
    try:
        for result in engine.map(work, tasks):
            progress.add(1)
            yield result
    finally:
        progress.close()
