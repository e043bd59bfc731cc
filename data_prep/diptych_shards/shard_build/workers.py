"""Building many shards, each in a worker process of an engine; a shard whose process dies is finished by another.

A worker asks for shards as long as it has hands for them, sends its news, and sends a report for each shard that is
finished; it has several shards at once, as the slow hosts of one are waited for while the next is fetched.
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
"""Processes in a row that may be lost at a shard without a row finished; each row that kills its process takes two."""


def build_shards(
    tasks: Iterable[ShardTask],
    out: Path,
    options: BuildOptions,
    engine: Engine,
    tell: Callable[[News], None],
    *,
    silence_seconds: float = NEWS_SILENCE_SECONDS,
) -> Iterator[ShardReport]:
    """The report of each shard when it is finished.

    silence_seconds: see `WorkerPool`. A process that reads or writes files may take longer: no kill would end the wait
    for a disk that hangs.

    Raises:
        UserError, OSError: what a worker could not do (a full disk).
        UserError: too many processes were lost at a shard, or processes cannot start.
    """
    share = max(1, options.fetch.per_host // engine.processes)
    options = replace(options, fetch=replace(options.fetch, per_host=share))
    source = iter(tasks)
    queue = deque(islice(source, 1))  # read ahead, so that a worker is answered at once
    if not queue:
        return
    in_hand: dict[Worker, dict[int, ShardTask]] = {}  # by number; none is empty
    with engine.pool(partial(_build, out.resolve(), options), silence_seconds=silence_seconds) as pool:
        while queue or in_hand:
            for worker in pool.asking():
                if queue:
                    task = queue.popleft()
                    in_hand.setdefault(worker, {})[task.number] = task
                    worker.give(task)
                    if not queue:
                        queue.extend(islice(source, 1))
                elif worker in in_hand:
                    worker.give(None)
            news: News | None = None
            for worker, message in pool.messages():
                if message is LOST:
                    queue.extendleft(_after_loss(out, options, task) for task in in_hand.pop(worker, {}).values())
                elif isinstance(message, News):
                    worker.may_be_silent = message.at_files
                    for (number, outcome), count in message.finished.items():
                        in_hand[worker][number].told[outcome] += count
                    news = message if news is None else news + message
                else:
                    del in_hand[worker][message.number]
                    if not in_hand[worker]:
                        del in_hand[worker]
                    if news is not None:
                        tell(news)
                        news = None
                    yield message
            if news is not None:
                tell(news)


def _after_loss(out: Path, options: BuildOptions, task: ShardTask) -> ShardTask:
    """The shard for another process to go on with.

    Raises:
        UserError: too many processes were lost at it since the last that finished a row.
    """
    journal = journal_path(out, task.number, options)
    num_bytes = journal.stat().st_size if journal.exists() else 0
    losses = 1 if num_bytes > task.journal_bytes else task.losses + 1
    if losses > MAX_LOSSES:
        raise lost_again(f"shard {task.number}")
    return replace(task, losses=losses, journal_bytes=num_bytes)


def _build(out: Path, options: BuildOptions, tasks: Iterator[ShardTask], send: Callable[[Any], None]) -> None:
    """The work of a process."""
    builder = _kept_builder(out, options)
    builder.tell = send
    for report in builder.build(tasks):
        send(report)


@lru_cache(maxsize=1)
def _kept_builder(out: Path, options: BuildOptions) -> ShardBuilder:
    """One a process, which does its work several times: connections and what is known of hosts stay."""
    return ShardBuilder(out, options)
