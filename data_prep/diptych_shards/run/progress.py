"""Show how far a command is: by a bar on a terminal, elsewhere by a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

from tqdm import tqdm

from diptych.terminal import counted

if TYPE_CHECKING:
    from diptych_shards.run.engine import Engine

Task = TypeVar("Task")
Result = TypeVar("Result")

SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Counts finished items, and how many of them ended in a certain way, such as refused."""

    def __init__(self, total: int, what: str = "picture", *, apart: str = "refused"):
        """what: one item, perhaps with what is done to it: `pair examined`. apart: the ending to count separately."""
        noun, _, done = what.partition(" ")
        self._of_total = f"{counted(total, noun)} {done}".rstrip()
        self._apart = apart
        self._done = 0
        self._num_apart = 0
        self._last_line = time.monotonic()
        self._on_terminal = sys.stderr.isatty()
        self._bar = tqdm(total=total, unit=f" {self._of_total.partition(' ')[2]}", disable=not self._on_terminal)

    def add(self, number: int, *, apart: int = 0) -> None:
        self._done += number
        self._bar.update(number)
        if apart:
            self._num_apart += int(apart)
            self._bar.set_postfix_str(f"{self._num_apart:,} {self._apart}", refresh=False)
        if not self._on_terminal and time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES:
            self.note(self._count())

    def note(self, line: str) -> None:
        """Print a line, above the bar if there is one."""
        self._last_line = time.monotonic()
        self._bar.clear()
        print(line, file=sys.stderr, flush=True)

    def shard_is_done(self, name: str) -> None:
        if not self._on_terminal:
            self.note(f"{name}: {self._count()}")

    def close(self) -> None:
        self._bar.close()

    def _count(self) -> str:
        apart = f", {self._num_apart:,} {self._apart}" if self._num_apart else ""
        return f"{self._done:,} of {self._of_total}{apart}"


def map_with_progress(
    engine: Engine, work: Callable[[Task], Result], tasks: Sequence[Task], what: str
) -> Iterator[Result]:
    """Yield the results of all tasks, in their order, and show how many are done. what: as `Progress` takes it."""
    progress = Progress(len(tasks), what)
    try:
        for result in engine.map(work, tasks):
            progress.add(1)
            yield result
    finally:
        progress.close()
