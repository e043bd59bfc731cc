"""Sites that are down, bad or busy, for a while or for good, cost no URL that can be fetched."""

from __future__ import annotations

import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from diptych_shards.fetch.fetcher import Fetcher, FetchFailure, FetchOptions
from tests.data_prep.fetch.conftest import fetch, open_fetcher, shown

REASONS = {
    "truncated": "truncated_body",
    "reset": "connection_reset",
    "lying_length": "bad_answer",
    "no_answer": "no_answer",
    "reset_at_once": "connection_reset",
    "unavailable": "http_503",
}


class Pictures(BaseHTTPRequestHandler):
    """Serves the same body at every path."""

    def do_GET(self):
        self.send_response(404 if self.path == "/robots.txt" else 200)
        self.end_headers()
        self.wfile.write(b"picture")

    def log_message(self, *arguments):
        pass


def side_by_side(check: Callable, *values: Iterable) -> None:
    """Check all combinations of the values at once, since each does little but wait."""
    cases = list(itertools.product(*values))
    with ThreadPoolExecutor(len(cases)) as threads:
        list(threads.map(lambda case: check(*case), cases))


def test_pauses_that_a_host_asks_for_are_kept(web):
    started = time.monotonic()
    fetch(web, [web.url("retry_after"), web.url("retry_after_date")])
    assert time.monotonic() - started >= 1


def test_no_url_waits_forever_for_pauses(web, monkeypatch):
    monkeypatch.setattr("diptych_shards.fetch.site.MAX_WAIT_SECONDS", 0.5)
    urls = [web.url("retry_always", f"/{number}") for number in range(20)]
    options = {"retries": 10, "timeout_seconds": 1.0, "respect_robots_txt": False, "per_host": 1}
    reasons = set(shown(fetch(web, urls, **options)))
    # URLs that wait are given up; one that is requested at the last moment ends with the answer to it.
    assert "timeout" in reasons
    assert reasons <= {"timeout", "http_429"}


def test_a_host_that_asks_for_a_long_pause_is_not_asked_again(web):
    outcomes = fetch(web, [web.url("retry_next_hour", f"/{number}") for number in range(100)])
    assert set(shown(outcomes)) == {"http_429", "host_given_up"}
    assert {outcome.message for outcome in outcomes if outcome.reason == "host_given_up"} == {
        "host given up: HTTP Error 429: Too Many Requests"
    }
    assert len(web.asked_for("retry_next_hour")) <= 3  # robots.txt, and two at once


def test_a_dead_host_is_given_up_after_a_few_connections(open_web):
    def check(respect_robots_txt):
        web = open_web()
        with open_fetcher(web, respect_robots_txt=respect_robots_txt, patience_seconds=2.0) as fetcher:
            urls = [(number, web.url("dead", f"/{number}")) for number in range(500)]
            outcomes = list(fetcher.fetch([*urls, (500, web.url("red.jpg"))]))
            assert outcomes[0][0] == 500  # it does not wait for the dead host
            assert {outcome for _, outcome in outcomes[1:]} == {
                FetchFailure("host_given_up", "host given up: connection failed")
            }
            assert fetcher.counters.connections <= 10
            assert [outcome.reason for _, outcome in fetcher.fetch([urls[0]])] == ["host_given_up"]

    side_by_side(check, [True, False])


def test_a_host_whose_answers_all_break_off_is_given_up(web):
    urls = [web.url("no_answer", f"/{number}") for number in range(500)]
    assert set(shown(fetch(web, urls, per_host=2, patience_seconds=2.0))) == {"host_given_up"}
    assert len(web.asked_for("no_answer")) < 20


def test_a_host_that_answers_only_errors_is_asked_for_each_url(web):
    urls = [web.url("unavailable", f"/{number}") for number in range(30)]
    assert set(shown(fetch(web, urls, patience_seconds=0.5))) == {"http_503"}
    assert set(web.asked_for("unavailable")) == {"/robots.txt", *(f"/{number}" for number in range(30))}


def test_neighbouring_bad_urls_fail_alone(open_web):
    def check(kind, num_bad):
        web = open_web()
        bad = [f"/{number}" for number in range(10, 10 + num_bad)]
        web.trouble = lambda path: kind if path in bad else None
        outcomes = fetch(web, [web.url("troubled", f"/{number}") for number in range(30)], per_host=1)
        wanted = [REASONS[kind] if f"/{n}" in bad else f"picture at /{n}".encode() for n in range(30)]
        assert shown(outcomes) == wanted, (kind, num_bad)

    side_by_side(check, REASONS, [2, 5])


def test_many_neighbouring_bad_urls_fail_alone(open_web):
    def check(kind, per_host):
        web = open_web()
        bad = [f"/{number}" for number in range(10, 40)]
        web.trouble = lambda path: kind if path in bad else None
        urls = [web.url("troubled", f"/{n}") for n in range(200)]
        wanted = [REASONS[kind] if f"/{n}" in bad else f"picture at /{n}".encode() for n in range(200)]
        assert shown(fetch(web, urls, per_host=per_host, patience_seconds=2.0)) == wanted, (kind, per_host)

    side_by_side(check, ["reset_at_once", "unavailable"], [1, 8])


def test_a_few_urls_of_a_dead_host_all_have_its_reason(web):
    urls = [web.url("dead", f"/{number}") for number in range(5)]
    assert set(shown(fetch(web, urls, patience_seconds=1.0))) == {"connect_failed"}


def test_a_host_that_is_down_for_a_while_costs_no_url(open_web):
    def check(kind, per_host):
        web = open_web()
        began = []

        def trouble(path):
            if path == "/50" and not began:
                began.append(time.monotonic())
            return kind if began and time.monotonic() - began[0] < 2.5 else None

        web.trouble = trouble
        outcomes = fetch(
            web, [web.url("troubled", f"/{number}") for number in range(100)], per_host=per_host, retries=2
        )
        assert shown(outcomes) == [f"picture at /{number}".encode() for number in range(100)], (kind, per_host)
        assert len(web.asked_for("troubled")) < 150  # a few probes, and what curl repeats when a kept connection ends

    side_by_side(check, ["reset_at_once", "no_answer", "unavailable"], [1, 8])


def test_a_host_where_nobody_listens_for_a_while_costs_no_url():
    def check(num_urls, respect_robots_txt):
        with socket.socket() as late:
            late.bind(("127.0.0.1", 0))
            server = ThreadingHTTPServer(late.getsockname(), Pictures, bind_and_activate=False)
            server.socket.close()
            server.socket = late
            begin = threading.Timer(0.8, lambda: (late.listen(64), server.serve_forever(0.05)))
            begin.start()
            options = FetchOptions(allow_networks=("127.0.0.1/32",), respect_robots_txt=respect_robots_txt)
            urls = [f"http://127.0.0.1:{late.getsockname()[1]}/{number}" for number in range(num_urls)]
            with Fetcher(options) as fetcher:
                assert {shown([outcome])[0] for _, outcome in fetcher.fetch(enumerate(urls))} == {b"picture"}
            server.shutdown()
            begin.join()

    side_by_side(check, [1, 50], [True, False])
