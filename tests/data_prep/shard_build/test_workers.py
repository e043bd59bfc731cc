"""Workers that die, and workers that only seem to have died."""

from __future__ import annotations

import multiprocessing
import socket
import time
from collections import Counter
from contextlib import ExitStack

import pyarrow
import pytest

from diptych_shards.fetch.options import FetchOptions
from diptych_shards.run.engine import LocalEngine
from diptych_shards.shard_build.options import BuildOptions
from diptych_shards.shard_build.shard import Journal, ShardOutput, ShardTask
from diptych_shards.shard_build.workers import build_shards
from diptych_shards.tables.columns import Columns

pytestmark = pytest.mark.usefixtures("forked_workers")

ROWS = 20
SILENCE_SECONDS = 2.0
"""In place of five minutes; a waiting worker sends news each second."""


@pytest.fixture
def sites():
    """A host where nobody listens, and one where nobody answers."""
    with ExitStack() as sockets:
        closed = sockets.enter_context(socket.socket())
        closed.bind(("127.0.0.1", 0))
        silent = sockets.enter_context(socket.create_server(("127.0.0.1", 0)))
        yield tuple(f"http://127.0.0.1:{one.getsockname()[1]}" for one in (closed, silent))


@pytest.fixture
def options(tmp_path):
    (tmp_path / "_index").mkdir()
    fetch = FetchOptions(
        allow_networks=("127.0.0.0/8",), retries=0, patience_seconds=0.5, timeout_seconds=4, respect_robots_txt=False
    )
    return BuildOptions(fetch=fetch)


def workers_now():
    return {process.pid for process in multiprocessing.active_children()}


def shard(number, urls):
    return ShardTask(number, pyarrow.table({"url": urls}), Columns(url="url"))


def test_a_row_is_reported_once_even_if_a_worker_dies(sites, options, tmp_path):
    closed, silent = sites
    task = shard(0, [*(f"{closed}/{row}" for row in range(ROWS)), f"{silent}/"])
    rows = Counter()
    killed = []

    def on_news(news):
        rows.update(news.rows)
        if rows and not killed:
            (worker,) = multiprocessing.active_children()
            worker.kill()
            killed.append(worker.pid)

    (report,) = build_shards([task], tmp_path, options, LocalEngine(1), on_news)
    assert killed and report.rows == ROWS + 1
    assert rows.total() == ROWS + 1, rows


def test_a_worker_is_kept_while_the_command_is_busy_elsewhere(sites, options, tmp_path):
    closed, _ = sites
    workers = set()

    def tasks():
        for number in range(3):
            if number == 2:
                workers.update(workers_now())
                time.sleep(SILENCE_SECONDS + 1)  # as if the terminal or the table hung
            yield shard(number, [f"{closed}/{row}" for row in range(ROWS)])

    def on_news(news):
        workers.update(workers_now())

    reports = list(build_shards(tasks(), tmp_path, options, LocalEngine(1), on_news, silence_seconds=SILENCE_SECONDS))
    assert len(reports) == 3 and len(workers) == 1


def test_shards_are_finished_on_a_slow_disk(sites, options, tmp_path, monkeypatch):
    """One is slow to write, the other slow to read, each in a worker of its own."""
    write, read_records = ShardOutput.write, Journal._read_records

    def write_slowly(output, *arguments, **others):
        time.sleep((SILENCE_SECONDS + 1) * (output.name == "00000"))
        return write(output, *arguments, **others)

    def read_records_slowly(journal, *arguments):
        time.sleep((SILENCE_SECONDS + 1) * journal.path.name.startswith("00001"))
        read_records(journal, *arguments)

    monkeypatch.setattr(ShardOutput, "write", write_slowly)
    monkeypatch.setattr(Journal, "_read_records", read_records_slowly)
    closed, _ = sites
    workers = set()

    def on_news(news):
        workers.update(workers_now())

    tasks = [shard(number, [f"{closed}/"]) for number in range(2)]
    reports = list(build_shards(tasks, tmp_path, options, LocalEngine(2), on_news, silence_seconds=SILENCE_SECONDS))
    assert [report.rows for report in reports] == [1, 1] and len(workers) == 2
