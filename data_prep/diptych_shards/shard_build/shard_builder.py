"""Build shards in one process and one event loop.

The fetcher gets the rows of one shard after the other without a pause, so that slow hosts at the end of one shard do
not hold up the next.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from diptych_shards.fetch.fetcher import Fetcher
from diptych_shards.fetch.outcome import Fetched
from diptych_shards.shard_build.options import BuildOptions
from diptych_shards.shard_build.shard import News, OpenShard, ShardReport, ShardTask

SECONDS_BETWEEN_NEWS = 0.5
READ_AHEAD = 4
"""The next shard is started when at most this many times `in_flight` URLs are unfinished. A worker that read further
ahead would leave nothing for the others if shards are small or few.
"""


class ShardBuilder:
    """Builds shards in this process, with the same connections and the same knowledge of hosts for all of them."""

    def __init__(self, out: Path, options: BuildOptions, send: Callable[[News], None] = lambda news: None):
        self._out = out
        self._options = options
        self.send = send
        self._fetcher = Fetcher(options.fetch, resolve=options.resolve, on_idle=self._send_news)
        self._tickets: dict[int, tuple[OpenShard, list[int]]] = {}
        self._news = News()
        self._sent_at = time.monotonic()

    def build(self, tasks: Iterable[ShardTask]) -> Iterator[ShardReport]:
        """Report each shard when it is finished. The next task is taken when there is room to fetch it."""
        ready: list[OpenShard] = []
        for ticket, outcome in self._fetcher.fetch(self._wanted(tasks, ready)):
            shard, rows = self._tickets.pop(ticket)
            if isinstance(outcome, Fetched):
                self._news.fetched_bytes += len(outcome.data)
            shard.take(rows, outcome)
            if shard.is_complete:
                ready.append(shard)
            yield from self._finish(ready)
            self._send_news()
        yield from self._finish(ready)

    def close(self) -> None:
        self._fetcher.close()

    def _wanted(self, tasks: Iterable[ShardTask], ready: list[OpenShard]) -> Iterator[tuple[int, str] | None]:
        ticket = 0
        for task in tasks:
            self._send_news(now=True, at_files=True)
            shard = OpenShard(task, self._out, self._options, self._news)
            self._send_news(now=True)
            if shard.is_complete:
                ready.append(shard)
            for url, rows in shard.missing():
                self._tickets[ticket] = (shard, rows)
                yield ticket, url
                ticket += 1
            while len(self._tickets) > READ_AHEAD * self._options.fetch.in_flight:
                yield None

    def _finish(self, ready: list[OpenShard]) -> Iterator[ShardReport]:
        while ready:
            self._send_news(now=True, at_files=True)
            yield ready.pop().finish()

    def _send_news(self, *, now: bool = False, at_files: bool = False) -> None:
        if now or time.monotonic() - self._sent_at > SECONDS_BETWEEN_NEWS:
            self.send(News(Counter(self._news.finished), self._news.fetched_bytes, at_files))
            self._news.finished.clear()
            self._news.fetched_bytes = 0
            self._sent_at = time.monotonic()
