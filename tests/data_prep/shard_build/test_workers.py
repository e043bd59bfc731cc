"""Workers that are lost, and workers that only seem to be."""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
from collections import Counter
from contextlib import ExitStack

import pyarrow
import pytest

from diptych_shards.fetch.options import FetchOptions
from diptych_shards.run.engine import LocalEngine
from diptych_shards.shard_build.options import BuildOptions
from diptych_shards.shard_build.shard import ShardTask
from diptych_shards.shard_build.workers import build_shards
from diptych_shards.tables.columns import Columns

ROWS = 20
SILENCE_SECONDS = 3.0
"""In place of five minutes; a worker that waits tells news each second."""


@pytest.fixture
def sites():
    """Where nobody listens, and where nobody answers."""
    with ExitStack() as sockets:
        closed = sockets.enter_context(socket.socket())
        closed.bind(("127.0.0.1", 0))
        silent = sockets.enter_context(socket.create_server(("127.0.0.1", 0)))
        yield tuple(f"http://127.0.0.1:{one.getsockname()[1]}" for one in (closed, silent))


@pytest.fixture
def options(tmp_path):
    (tmp_path / "_index").mkdir()
    fetch = FetchOptions(
        allow_networks=("127.0.0.0/8",), retries=0, patience_seconds=1, timeout_seconds=5, respect_robots_txt=False
    )
    return BuildOptions(fetch=fetch)


def workers_now():
    return {process.pid for process in multiprocessing.active_children()}


def shard(number, urls):
    return ShardTask(number, pyarrow.table({"url": urls}), Columns(url="url"))


def test_a_row_is_news_once_also_where_a_worker_is_lost(sites, options, tmp_path):
    closed, silent = sites
    task = shard(0, [*(f"{closed}/{row}" for row in range(ROWS)), f"{silent}/"])
    rows = Counter()
    killed = []

    def tell(news):
        rows.update(news.rows)
        if rows and not killed:
            (worker,) = multiprocessing.active_children()
            worker.kill()
            killed.append(worker.pid)

    (report,) = build_shards([task], tmp_path, options, LocalEngine(1), tell)
    assert killed and report.rows == ROWS + 1
    assert rows.total() == ROWS + 1, rows


def test_a_worker_that_was_not_listened_to_is_kept(sites, options, tmp_path):
    closed, _ = sites
    workers = set()

    def tasks():
        for number in range(3):
            if number == 2:
                workers.update(workers_now())
                time.sleep(SILENCE_SECONDS + 1)  # as where the terminal takes no line, or the table none gives
            yield shard(number, [f"{closed}/{row}" for row in range(ROWS)])

    def tell(news):
        workers.update(workers_now())

    reports = list(build_shards(tasks(), tmp_path, options, LocalEngine(1), tell, silence_seconds=SILENCE_SECONDS))
    assert len(reports) == 3 and len(workers) == 1


SLOW_DISK = """
import time
from diptych_shards.shard_build.shard import Journal, ShardOutput
write, take_up = ShardOutput.write, Journal._take_up
def write_slowly(*arguments, **others):
    time.sleep({seconds})
    return write(*arguments, **others)
def take_up_slowly(*arguments):
    time.sleep({seconds})
    take_up(*arguments)
ShardOutput.write, Journal._take_up = write_slowly, take_up_slowly
"""


def test_a_shard_whose_files_take_long_is_finished(sites, options, tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(SLOW_DISK.format(seconds=SILENCE_SECONDS + 2))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    closed, _ = sites
    workers = set()

    def tell(news):
        workers.update(workers_now())

    task = shard(0, [f"{closed}/"])
    (report,) = build_shards([task], tmp_path, options, LocalEngine(1), tell, silence_seconds=SILENCE_SECONDS)
    assert report.rows == 1 and len(workers) == 1
