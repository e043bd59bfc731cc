"""A local web, and a fetcher that is patient for seconds."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from diptych_shards.fetch.fetcher import Fetched, Fetcher, FetchOptions
from tests.data_prep.hostile_web import HostileWeb

PATIENCE = {"timeout_seconds": 3.0, "connect_timeout_seconds": 1.0, "retries": 1, "max_bytes": 2**20}


@pytest.fixture
def open_web():
    """Opens a web, which is closed at the end."""
    with ExitStack() as webs:
        yield lambda: webs.enter_context(HostileWeb({"red.jpg": b"red", "blue.jpg": b"blue"}))


@pytest.fixture
def web(open_web):
    return open_web()


def open_fetcher(web, resolve=(), **options):
    options = FetchOptions(allow_networks=(web.network,), **{**PATIENCE, **options})
    return Fetcher(options, resolve=[*web.resolve, *resolve])


def fetch(web, urls, **options):
    with open_fetcher(web, **options) as fetcher:
        outcomes = dict(fetcher.fetch(enumerate(urls)))
    assert sorted(outcomes) == list(range(len(urls)))
    return [outcomes[ticket] for ticket in range(len(urls))]


def shown(outcomes):
    """The body or the reason of each outcome."""
    return [outcome.data if isinstance(outcome, Fetched) else outcome.reason for outcome in outcomes]
