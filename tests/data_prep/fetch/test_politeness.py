from datetime import datetime, timezone

import pytest

from diptych_shards.fetch.outcome import FetchFailure
from diptych_shards.fetch.politeness import BACK_OFFS, GIVEN_UP_SECONDS, Site, retry_after_seconds

FAILURE = FetchFailure("connect_failed", "connection failed")
TOO_MANY = FetchFailure("http_429", "HTTP Error 429: Too Many Requests")


def site(waiting=100, connections=4):
    site = Site("http://example.com", connections)
    site.queue.extend(range(waiting))
    return site


def start_all(site, now=0.0):
    before = site.in_flight
    while site.can_start(now):
        site.in_flight += 1
    return site.in_flight - before


def test_a_stranger_is_asked_once_and_more_with_each_answer():
    stranger = site()
    assert start_all(stranger) == 1
    stranger.note_answer()
    assert start_all(stranger) == 1
    for _ in range(10):
        stranger.note_answer()
    assert start_all(stranger) == 2  # four in all


def test_a_site_that_never_answered_is_given_up_after_three_failures_and_tried_again_later():
    dead = site()
    for _ in range(2):
        dead.note_failure(FAILURE, 0.0)
        assert dead.given_up(0.0) is None
    dead.note_failure(FAILURE, 0.0)
    assert dead.given_up(1.0) == FAILURE
    assert dead.given_up(GIVEN_UP_SECONDS) is None
    dead.note_failure(FAILURE, GIVEN_UP_SECONDS)
    assert dead.given_up(GIVEN_UP_SECONDS + 1) == FAILURE


def test_failures_between_answers_do_not_count():
    flaky = site()
    for _ in range(100):
        flaky.note_failure(FAILURE, 0.0)
        flaky.note_answer()
    assert flaky.given_up(0.0) is None


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


def test_answers_to_what_was_asked_before_a_pause_do_not_prolong_it():
    busy = site()
    for _ in range(20):
        busy.back_off(TOO_MANY, started=0.0, seconds=10.0, now=1.0, longest=60.0)
    assert busy.given_up(1.0) is None
    assert busy.quiet_until == 11.0


def test_a_site_that_goes_on_asking_for_pauses_is_given_up():
    busy = site()
    now = 0.0
    for _ in range(BACK_OFFS):
        assert busy.given_up(now) is None
        busy.back_off(TOO_MANY, started=now, seconds=None, now=now, longest=60.0)
        assert now < busy.quiet_until <= now + 60
        now = busy.quiet_until + 1
    assert busy.given_up(now) == TOO_MANY


def test_a_pause_that_is_too_long_is_not_waited_for_but_kept():
    busy = site()
    busy.back_off(TOO_MANY, started=0.0, seconds=1000.0, now=0.0, longest=60.0)
    assert busy.given_up(999.0) == TOO_MANY
    assert busy.given_up(1001.0) is None


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("120", 120.0),
        (" 0 ", 0.0),
        ("99999999999999999999", 999999999.0),
        ("Tue, 24 Nov 2026 12:01:00 GMT", 60.0),
        ("Tuesday, 24-Nov-26 12:01:00 GMT", 60.0),
        ("Tue, 24 Nov 2026 11:00:00 GMT", 0.0),
        ("-5", None),
        ("soon", None),
        ("1.5", None),
        ("Tue, 99 Nov 2026 12:01:00 GMT", None),
    ],
)
def test_retry_after_is_read_as_seconds_or_a_date(value, seconds):
    now = datetime(2026, 11, 24, 12, 0, tzinfo=timezone.utc)
    assert retry_after_seconds(value, now=now) == seconds
