import resource
import time

import pytest

from diptych_shards.build.fetch import Fetched, Fetcher, FetchFailure, FetchOptions
from tests.data_prep.hostile_web import NOT_A_PICTURE, HostileWeb

PATIENCE = {"timeout_seconds": 3.0, "connect_timeout_seconds": 2.0, "retries": 1, "max_bytes": 2**20}


@pytest.fixture(scope="module")
def web():
    with HostileWeb({"red.jpg": b"red", "blue.jpg": b"blue"}) as web:
        yield web


def fetch(web, urls, resolve=(), **options):
    options = FetchOptions(allow_networks=(web.network,), **{**PATIENCE, **options})
    with Fetcher(options, resolve=[*web.resolve, *resolve]) as fetcher:
        outcomes = dict(fetcher.fetch(enumerate(urls)))
    assert sorted(outcomes) == list(range(len(urls)))
    return [outcomes[ticket] for ticket in range(len(urls))]


def fetch_one(web, url, **options):
    return fetch(web, [url], **options)[0]


HOSTILE = {
    "not_found": "http_404",
    "endless_not_found": "http_404",
    "partial": "http_206",
    "empty": "empty_body",
    "redirect_to_loopback": "address_not_public",
    "redirect_to_decimal": "address_not_public",
    "rebinding": "address_not_public",
    "redirect_to_file": "scheme_not_allowed",
    "endless_redirect": "too_many_redirects",
    "slow_headers": "headers_too_slow",
    "silent": "headers_too_slow",
    "slow_body": "too_slow",
    "slow_chunks": "too_slow",
    "steady_but_long": "timeout",
    "giant_header": "headers_too_large",
    "endless_headers": "headers_too_large",
    "endless_hints": "headers_too_large",
    "gzip_bomb": "too_many_bytes_unpacked",
    "truncated_gzip": "truncated_body",
    "false_gzip": "bad_encoding",
    "brotli": "bad_encoding",
    "large": "too_many_bytes",
    "endless_body": "too_many_bytes",
    "endless_chunks": "too_many_bytes",
    "truncated": "truncated_body",
    "truncated_chunks": "truncated_body",
    "reset": "connection_reset",
    "no_answer": "no_answer",
    "not_http": "bad_answer",
    "lying_length": "bad_answer",
    "retry_next_hour": "http_429",
    "opted_out": "opt_out",
    "robots_broken": "robots_txt",
    "tls_self_signed": "tls_failed",
    "tls_none": "tls_failed",
    "dead": "connect_failed",
}


def test_each_hostile_host_gets_its_own_reason_in_bounded_time_and_memory(web):
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.monotonic()
    outcomes = fetch(web, [web.url(name) for name in HOSTILE])
    assert {name: getattr(outcome, "reason", outcome) for name, outcome in zip(HOSTILE, outcomes)} == HOSTILE
    assert web.refused_visits == 0
    assert time.monotonic() - started < 12  # 3 s for what is in transfer, and pauses before one repetition
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 60_000  # KB; the bombs hold 64 MB each
