"""Workers that are lost, and workers that only seem to be."""

from __future__ import annotations

import multiprocessing
import socket
from collections import Counter
from contextlib import ExitStack

import pyarrow
import pytest

from diptych_shards.build.options import BuildOptions
from diptych_shards.build.shard import ShardTask
from diptych_shards.engines import LocalEngine
from diptych_shards.fetch.options import FetchOptions
from diptych_shards.tables.columns import Columns

ROWS = 20


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
    fetch = FetchOptions(allow_networks=("127.0.0.0/8",), retries=0, timeout_seconds=5, respect_robots_txt=False)
    return BuildOptions(fetch=fetch)


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

    (report,) = LocalEngine(1).build([task], tmp_path, options, tell)
    assert killed and report.rows == ROWS + 1
    assert rows.total() == ROWS + 1, rows
