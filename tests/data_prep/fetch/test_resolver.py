import select
import threading
import time

import pytest

from diptych_shards.fetch import resolver as resolver_module
from diptych_shards.fetch.address_gate import AddressGate
from diptych_shards.fetch.resolver import Resolver


def wait_for(resolver, hosts, seconds=5.0):
    """Wait until all are answered; return the names in the order of their answers."""
    answered = []
    end = time.monotonic() + seconds
    while len(answered) < len(hosts) and time.monotonic() < end:
        select.select([resolver.wake_descriptor], [], [], 0.1)
        answered += resolver.answered(time.monotonic())
    return answered


@pytest.fixture
def lookups(monkeypatch):
    """A DNS whose names have addresses, are unknown or answer late; also the list of the names that were looked up."""
    names = {"good.test": ("127.0.0.1", "10.0.0.1"), "private.test": ("10.0.0.1",)}
    asked = []

    def look_up(host):
        asked.append(host)
        if host.startswith("slow"):
            time.sleep(3.0)
        if host in names:
            return names[host], None, True
        return (), resolver_module._NOT_FOUND, True

    monkeypatch.setattr(resolver_module, "_look_up", look_up)
    return asked


@pytest.fixture
def resolver():
    resolver = Resolver(AddressGate(["127.0.0.0/8"]), 0.4, ["given.test:80:127.0.0.1,10.0.0.1", "odd.test:80:10.0.0.1"])
    yield resolver
    resolver.close()


def test_only_allowed_addresses_are_returned(resolver, lookups):
    for host in ("good.test", "private.test", "unknown.test"):
        resolver.ask(host)
    assert sorted(wait_for(resolver, range(3))) == ["good.test", "private.test", "unknown.test"]
    now = time.monotonic()
    assert resolver.known("good.test", 80, now).addresses == ("127.0.0.1",)
    assert resolver.known("private.test", 80, now).failure.reason == "address_not_public"
    assert resolver.known("unknown.test", 80, now).failure.reason == "dns_failed"


def test_a_name_is_looked_up_once_until_its_answer_is_old(resolver, lookups):
    for _ in range(3):
        resolver.ask("good.test")
    wait_for(resolver, range(1))
    now = time.monotonic()
    assert resolver.known("good.test", 80, now) is resolver.known("good.test", 8080, now + 599)
    assert resolver.known("good.test", 80, now + 601) is None
    assert lookups == ["good.test"]


def test_names_that_answer_late_fail_in_time_and_hold_up_no_other(resolver, lookups):
    slow = [f"slow{number}.test" for number in range(30)]
    for host in [*slow, "good.test"]:
        resolver.ask(host)
    started = time.monotonic()
    answered = wait_for(resolver, range(31))
    assert answered[0] == "good.test" and sorted(answered[1:]) == sorted(slow)
    assert time.monotonic() - started < 3.0
    assert resolver.known("slow0.test", 80, time.monotonic()).failure.message == "looking up the host took too long"


class NameServer:
    """Answers `capacity` lookups at a time; more than these fail at once for lack of time."""

    def __init__(self, capacity):
        self.capacity, self.running, self.most = capacity, 0, 0
        self.asked = []
        self._lock = threading.Lock()

    def look_up(self, host):
        with self._lock:
            self.asked.append(host)
            self.running += 1
            self.most = max(self.most, self.running)
            has_time = self.running <= self.capacity
        time.sleep(0.02)
        with self._lock:
            self.running -= 1
        return (), resolver_module._NOT_FOUND if has_time else resolver_module._NOT_NOW, has_time


def test_an_overloaded_name_server_gets_few_lookups_and_more_once_it_recovers(resolver, monkeypatch):
    server = NameServer(0)
    monkeypatch.setattr(resolver_module, "_look_up", server.look_up)
    for number in range(80):
        resolver.ask(f"a{number}.test")
    wait_for(resolver, range(80))
    server.most = 0
    for number in range(40):
        resolver.ask(f"b{number}.test")
    wait_for(resolver, range(40))
    assert server.most <= resolver_module.MIN_LOOKUPS
    server.capacity = 1000
    for number in range(200):
        resolver.ask(f"c{number}.test")
    assert len(wait_for(resolver, range(200))) == 200
    assert server.most > 4 * resolver_module.MIN_LOOKUPS
    assert server.most <= resolver_module.MAX_LOOKUPS


def test_names_wait_no_longer_than_a_minute_for_a_name_server_that_is_down(resolver, lookups, monkeypatch):
    monkeypatch.setattr(resolver_module, "DOWN_SECONDS", 0.5)
    monkeypatch.setattr(resolver_module, "MAX_THREADS", 8)
    names = [f"slow{number}.test" for number in range(100)]
    for host in names:
        resolver.ask(host)
    assert sorted(wait_for(resolver, names)) == sorted(names)
    assert len(lookups) == 8


def test_an_unknown_name_is_not_asked_for_again_soon(resolver, lookups):
    resolver.ask("unknown.test")
    wait_for(resolver, range(1))
    now = time.monotonic()
    assert resolver.known("unknown.test", 80, now + 600).failure.message == "host not found"
    assert resolver.known("unknown.test", 80, now + 1000) is None


def test_entries_replace_dns_and_are_checked_like_its_answers(resolver, lookups):
    assert resolver.known("given.test", 80, 0.0).addresses == ("127.0.0.1",)
    assert resolver.known("odd.test", 80, 0.0).failure.reason == "address_not_public"
    assert resolver.known("given.test", 81, 0.0) is None


@pytest.mark.parametrize(
    "entry", ["x", "host:127.0.0.1", "host:80:", ":80:127.0.0.1", "host:0:127.0.0.1", "host:http:127.0.0.1", "a:80:b"]
)
def test_the_error_names_a_malformed_entry(entry):
    with pytest.raises(ValueError, match=f"'{entry}' is not of the form host:port:address"):
        Resolver(AddressGate(), 1.0, [entry])
