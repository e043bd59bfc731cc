"""Build many shards in worker processes of an engine; if a process dies, another one finishes its shards.

A worker has several shards at once: while it waits for the slow hosts of one, it fetches the next. It asks for shards
as long as it has room for them, sends news, and sends a report for each finished shard.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

from diptych_shards.run.engine import Engine, lost_again
from diptych_shards.run.worker_pool import LOST, NEWS_SILENCE_SECONDS, Worker
from diptych_shards.shard_build.options import BuildOptions
from diptych_shards.shard_build.shard import News, ShardReport, ShardTask, journal_path
from diptych_shards.shard_build.shard_builder import ShardBuilder

MAX_LOSSES = 5
"""How many processes, one after another, may die at a shard without finishing a row. A deadly row takes two."""


def build_shards(
    tasks: Iterable[ShardTask],
    out: Path,
    options: BuildOptions,
    engine: Engine,
    on_news: Callable[[News], None],
    *,
    silence_seconds: float = NEWS_SILENCE_SECONDS,
) -> Iterator[ShardReport]:
    """Build the shards, and report each when it is finished.

    silence_seconds: see `WorkerPool`. A worker that reads or writes files may be silent for longer: to kill it would
        not end the wait for a slow disk.

    Raises:
        UserError, OSError: a worker failed, for example because the disk is full.
        UserError: too many processes died at a shard, or processes cannot start.
    """
    share = max(1, options.fetch.per_host // engine.processes)
    options = replace(options, fetch=replace(options.fetch, per_host=share))
    source = iter(tasks)
    queue = deque(islice(source, 1))  # read ahead, so that a worker is answered at once
    if not queue:
        return
    assigned: dict[Worker, dict[int, ShardTask]] = {}  # by number; a worker without tasks has no entry
    with engine.pool(partial(_build, out.resolve(), options), silence_seconds=silence_seconds) as pool:
        while queue or assigned:
            for worker in pool.asking():
                if queue:
                    task = queue.popleft()
                    assigned.setdefault(worker, {})[task.number] = task
                    worker.give(task)
                    if not queue:
                        queue.extend(islice(source, 1))
                elif worker in assigned:
                    worker.give(None)
            news: News | None = None
            for worker, message in pool.messages():
                if message is LOST:
                    queue.extendleft(_after_loss(out, options, task) for task in assigned.pop(worker, {}).values())
                elif isinstance(message, News):
                    worker.may_be_silent = message.at_files
                    for (number, outcome), count in message.finished.items():
                        assigned[worker][number].reported[outcome] += count
                    news = message if news is None else news + message
                else:
                    del assigned[worker][message.number]
                    if not assigned[worker]:
                        del assigned[worker]
                    if news is not None:
                        on_news(news)
                        news = None
                    yield message
            if news is not None:
                on_news(news)


def _after_loss(out: Path, options: BuildOptions, task: ShardTask) -> ShardTask:
    """The task for the next process, after one died at it.

    Raises:
        UserError: too many processes, one after another, died at it without finishing a row.
    """
    journal = journal_path(out, task.number, options)
    num_bytes = journal.stat().st_size if journal.exists() else 0
    losses = 1 if num_bytes > task.journal_bytes else task.losses + 1
    if losses > MAX_LOSSES:
        raise lost_again(f"shard {task.number}")
    return replace(task, losses=losses, journal_bytes=num_bytes)


def _build(out: Path, options: BuildOptions, tasks: Iterator[ShardTask], send: Callable[[Any], None]) -> None:
    """Build shards in a worker process."""
    builder = _kept_builder(out, options)
    builder.send = send
    for report in builder.build(tasks):
        send(report)


@lru_cache(maxsize=1)
def _kept_builder(out: Path, options: BuildOptions) -> ShardBuilder:
    """The builder of this process, kept so that connections and what is known of hosts stay."""
    return ShardBuilder(out, options)
