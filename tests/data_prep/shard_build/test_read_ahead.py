"""Rows are read when there is room for them."""

import socket

import pyarrow

from diptych_shards.fetch.fetcher import Fetcher, FetchOptions
from diptych_shards.shard_build.options import BuildOptions
from diptych_shards.shard_build.shard import ShardTask
from diptych_shards.shard_build.shard_builder import READ_AHEAD, ShardBuilder
from diptych_shards.tables.columns import Columns

NO_URL = "ftp://example.org/"
IN_FLIGHT = 5
ROWS = 3 * READ_AHEAD * IN_FLIGHT


def test_a_source_that_has_no_row_for_now_is_asked_again():
    def source():
        yield 0, NO_URL
        yield None
        yield 1, NO_URL
        yield None
        yield None
        yield 2, NO_URL

    with Fetcher(FetchOptions()) as fetcher:
        assert [ticket for ticket, _ in fetcher.fetch(source())] == [0, 1, 2]


def test_the_next_shard_is_started_only_when_few_rows_are_unfinished(tmp_path):
    (tmp_path / "_index").mkdir()
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        site = f"http://127.0.0.1:{closed.getsockname()[1]}"  # rows wait until this host is given up
    options = BuildOptions(
        fetch=FetchOptions(in_flight=IN_FLIGHT, retries=0, patience_seconds=1, allow_networks=("127.0.0.0/8",))
    )
    finished = 0
    unfinished = []

    def count(news):
        nonlocal finished
        finished += news.rows.total()

    def tasks():
        for number in range(3):
            builder._send_news(now=True)
            unfinished.append(number * ROWS - finished)
            urls = [f"{site}/{number}/{row}" for row in range(ROWS)]
            yield ShardTask(number, pyarrow.table({"url": urls}), Columns(url="url"))

    builder = ShardBuilder(tmp_path, options, count)
    reports = list(builder.build(tasks()))
    builder.close()
    assert sorted(report.number for report in reports) == [0, 1, 2]
    assert unfinished[0] == 0 and all(0 < rows <= READ_AHEAD * IN_FLIGHT for rows in unfinished[1:])
