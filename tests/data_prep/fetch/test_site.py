import pytest

from diptych_shards.fetch.outcome import FetchFailure
from diptych_shards.fetch.site import (
    GIVEN_UP_SECONDS,
    MIN_BACK_OFFS,
    MIN_FAILED_URLS,
    MIN_PROBES,
    Site,
)

FAILURE = FetchFailure("connect_failed", "connection failed")
TOO_MANY = FetchFailure("http_429", "HTTP Error 429: Too Many Requests")
GIVEN_UP = FetchFailure("host_given_up", "host given up: connection failed")
PATIENCE_SECONDS = 30.0


def site(waiting=100, connections=4):
    site = Site("http://example.com", connections, PATIENCE_SECONDS)
    site.queue.extend(range(waiting))
    return site


def start_all(site, now=0.0):
    before = site.in_flight
    while site.can_start(now):
        site.in_flight += 1
    return site.in_flight - before


def test_a_new_site_gets_one_request_and_more_with_each_answer():
    new = site()
    assert start_all(new) == 1
    new.note_answer()
    assert start_all(new) == 1
    for _ in range(10):
        new.note_answer()
    assert start_all(new) == 2  # four in all


def fail(site, num_urls=MIN_FAILED_URLS, now=0.0):
    for _ in range(num_urls):
        site.note_silence(FAILURE, now, now, has_failed=False)


def test_a_site_that_gives_no_answer_is_probed_with_growing_pauses_and_given_up_when_patience_ends():
    dead = site()
    fail(dead)
    now, pauses = 0.0, []
    while dead.given_up(now) is None:
        pauses.append(dead.quiet_until - now)
        now = dead.quiet_until
        assert start_all(dead, now) == 1
        dead.in_flight = 0
        dead.note_silence(FAILURE, now, now, has_failed=True)
    assert pauses[:4] == sorted(pauses[:4]) and pauses[0] < 2 < 4 < pauses[3]
    assert PATIENCE_SECONDS <= now < 2 * PATIENCE_SECONDS
    assert dead.given_up(now) == GIVEN_UP
    assert dead.given_up(now + GIVEN_UP_SECONDS) is None
    dead.note_silence(FAILURE, now + GIVEN_UP_SECONDS, now + GIVEN_UP_SECONDS, has_failed=False)
    assert dead.given_up(now + GIVEN_UP_SECONDS) == GIVEN_UP


def test_one_url_that_fails_again_and_again_says_nothing_about_its_site():
    flaky = site()
    fail(flaky, 1)
    for _ in range(100):
        flaky.note_silence(FAILURE, 0.0, 0.0, has_failed=True)
    assert not flaky.is_waited_for


@pytest.mark.parametrize("is_error", [True, False])
def test_patience_with_a_site_that_has_answered_starts_when_it_falls_silent(is_error):
    restarted, now = site(), 1000.0
    restarted.note_answer()
    if is_error:
        restarted.note_error(0.0, 0.0, has_failed=False)
    else:
        fail(restarted, 1)
    fail(restarted, MIN_FAILED_URLS - 1, now)
    while restarted.given_up(now) is None:
        now = restarted.quiet_until
        restarted.note_silence(FAILURE, now, now, has_failed=True)
    assert now >= 1000.0 + PATIENCE_SECONDS


@pytest.mark.parametrize(("has_answered", "probes"), [(True, MIN_PROBES), (False, 1)])
def test_a_site_whose_failures_take_long_is_not_given_up_without_probes(has_answered, probes):
    slow = site()
    if has_answered:
        slow.note_answer()
    for number in range(MIN_FAILED_URLS + probes - 1):
        now = 100.0 * number
        slow.note_silence(FAILURE, now, now, has_failed=False)
        assert slow.given_up(now) is None
    slow.note_silence(FAILURE, now + 100.0, now + 100.0, has_failed=False)
    assert slow.given_up(now + 100.0) == GIVEN_UP


def test_a_site_with_many_bad_urls_is_waited_for_after_more_of_them():
    mixed = site()
    mixed.note_answer()
    for _ in range(10):
        mixed.note_silence(FAILURE, 0.0, 0.0, has_failed=True)
    fail(mixed, MIN_FAILED_URLS + 9)
    assert not mixed.is_waited_for
    fail(mixed, 1)
    assert mixed.is_waited_for


def test_failures_between_answers_do_not_count():
    flaky = site()
    for _ in range(100):
        fail(flaky, MIN_FAILED_URLS - 1)
        flaky.note_answer()
    assert not flaky.is_waited_for and flaky.given_up(0.0) is None


def test_failures_of_requests_in_flight_do_not_prolong_a_pause():
    busy = site()
    fail(busy)
    until = busy.quiet_until
    fail(busy, 8, now=0.1)
    assert busy.quiet_until == until


def test_errors_count_as_answers_when_patience_ends():
    broken = site()
    now = 0.0
    for _ in range(100):
        broken.note_error(now, now, has_failed=False)
        now = max(now, broken.quiet_until)
        assert broken.given_up(now) is None
    assert PATIENCE_SECONDS <= now < 2 * PATIENCE_SECONDS
    assert not broken.is_waited_for


def test_a_site_that_asks_for_a_pause_is_left_alone_and_then_asked_more_slowly():
    busy = site()
    for _ in range(4):
        busy.note_answer()
    assert start_all(busy) == 4
    busy.back_off(TOO_MANY, started=0.0, seconds=10.0, now=1.0, longest=60.0)
    busy.in_flight = 0
    assert start_all(busy, now=10.9) == 0
    assert start_all(busy, now=11.1) == 2
    assert busy.given_up(11.1) is None


def test_answers_to_requests_from_before_a_pause_do_not_prolong_it():
    busy = site()
    for _ in range(20):
        busy.back_off(TOO_MANY, started=0.0, seconds=10.0, now=1.0, longest=60.0)
    assert busy.given_up(1.0) is None
    assert busy.quiet_until == 11.0


@pytest.mark.parametrize("seconds", [None, 1.0])
def test_a_site_that_keeps_asking_for_pauses_is_given_up_when_patience_ends(seconds):
    busy = site()
    now, times = 0.0, 0
    while busy.given_up(now) is None:
        busy.back_off(TOO_MANY, started=now, seconds=seconds, now=now, longest=60.0)
        assert now < busy.quiet_until <= now + 60
        now = busy.quiet_until + 1
        times += 1
    assert times >= MIN_BACK_OFFS and PATIENCE_SECONDS <= now < 5 * PATIENCE_SECONDS
    assert busy.given_up(now) == FetchFailure("host_given_up", "host given up: HTTP Error 429: Too Many Requests")


def test_a_pause_that_is_too_long_is_kept_without_waiting_for_it():
    busy = site()
    busy.back_off(TOO_MANY, started=0.0, seconds=1000.0, now=0.0, longest=60.0)
    assert busy.given_up(999.0).reason == "host_given_up"
    assert busy.given_up(1001.0) is None
