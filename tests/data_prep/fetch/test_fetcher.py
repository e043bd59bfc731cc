import math
import resource
import threading
import time
from collections import Counter

import pytest

from diptych_shards.fetch.fetcher import Fetched, Fetcher, FetchFailure, FetchOptions
from tests.data_prep.fetch.conftest import PATIENCE, fetch, open_fetcher, shown
from tests.data_prep.hostile_web import NOT_A_PICTURE

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
    "reset_at_once": "connection_reset",
    "no_answer": "no_answer",
    "unavailable": "http_503",
    "not_http": "bad_answer",
    "lying_length": "bad_answer",
    "retry_next_hour": "http_429",
    "opted_out": "opt_out",
    "opted_out_of_all": "opt_out",
    "reserved": "opt_out",
    "not_reserved": b"picture",
    "other_protocol": "bad_answer",
    "robots_broken": "robots_txt",
    "tls_self_signed": "tls_failed",
    "tls_none": "tls_failed",
    "dead": "connect_failed",
}

HARMLESS = {
    "ok": b"picture at /picture.jpg",
    "html": NOT_A_PICTURE,
    "forbidden_once": b"picture",
    "truncated_once": b"picture",
    "redirect": b"picture at /picture.jpg",
    "hints": b"picture",
    "gzipped": b"picture" * 100,
    "odd_encoding": b"picture",
    "retry_after": b"picture",
    "retry_after_date": b"picture",
    "others_opted_out": b"picture",
    "robots_disallow": b"picture",
    "robots_endless": b"picture",
    "robots_moved": b"picture",
    "red.jpg": b"red",
}


def test_each_hostile_host_gets_its_own_reason_in_bounded_time_and_memory(web):
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.monotonic()
    outcomes = fetch(web, [web.url(name) for name in HOSTILE], timeout_seconds=6.0, min_bytes_per_second=200)
    assert dict(zip(HOSTILE, shown(outcomes), strict=True)) == HOSTILE
    assert web.refused_visits == 0
    assert time.monotonic() - started < 20  # 6 s in transfer, and a pause before one repetition
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 60_000  # KB; the bombs hold 64 MB each


def test_odd_but_harmless_hosts_give_their_bodies(web):
    outcomes = fetch(web, [web.url(name) for name in HARMLESS])
    assert dict(zip(HARMLESS, shown(outcomes), strict=True)) == HARMLESS


def test_other_hosts_are_fetched_while_one_is_left_alone(web):
    urls = [web.url("retry_after"), *[web.url("ok", f"/{number}") for number in range(50)]]
    with open_fetcher(web) as fetcher:
        order = [ticket for ticket, _ in fetcher.fetch(enumerate(urls))]
    assert order.index(0) > 10


def test_late_lookups_neither_spin_the_loop_nor_hold_up_other_urls(web, monkeypatch):
    def look_up(host):
        time.sleep(0.6)
        return (), FetchFailure("dns_failed", "late"), True

    monkeypatch.setattr("diptych_shards.fetch.resolver._look_up", look_up)
    late = [(number, f"http://late{number}.example/") for number in range(4)]
    with open_fetcher(web, connect_timeout_seconds=0.2, retries=0, in_flight=4) as fetcher:
        turns = []
        wait = fetcher._pool.wait
        monkeypatch.setattr(fetcher._pool, "wait", lambda seconds: turns.append(seconds) or wait(seconds))
        outcomes = dict(fetcher.fetch([*late, (4, web.url("silent"))]))
        assert {outcome.reason for outcome in outcomes.values()} == {"dns_failed", "headers_too_slow"}
        assert len(turns) < 200
        broken_off = fetcher.fetch([(0, "no url"), *((number, url + "again") for number, url in late)])
        next(broken_off)
        broken_off.close()
        assert dict(fetcher.fetch([(9, web.url("red.jpg"))]))[9].data == b"red"


def test_slow_lookups_do_not_hold_up_the_rows_behind_them(web, monkeypatch):
    def look_up(host):
        time.sleep(0.3)
        return (), FetchFailure("dns_failed", "no time"), False

    monkeypatch.setattr("diptych_shards.fetch.resolver._look_up", look_up)
    late = [(number, f"http://late{number}.example/") for number in range(200)]
    with open_fetcher(web, in_flight=4, retries=0) as fetcher:
        outcomes = fetcher.fetch([*late, (200, web.url("red.jpg"))])
        assert next(outcomes)[0] == 200
        outcomes.close()


def test_lookups_of_an_aborted_call_hold_up_no_other_url(web, monkeypatch):
    answers = threading.Event()

    def look_up(host):
        answers.wait()
        return (), FetchFailure("dns_failed", "late"), True

    monkeypatch.setattr("diptych_shards.fetch.resolver._look_up", look_up)
    late = [(number, f"http://late{number}.example/") for number in range(1, 30)]
    options = {"in_flight": 4, "look_ahead": 8, "respect_robots_txt": False}
    with open_fetcher(web, connect_timeout_seconds=60.0, timeout_seconds=60.0, **options) as fetcher:
        broken_off = fetcher.fetch([(0, "no url"), *late])
        next(broken_off)
        broken_off.close()
        in_case = threading.Timer(10.0, answers.set)
        in_case.start()
        assert dict(fetcher.fetch([(9, web.url("red.jpg"))]))[9].data == b"red"
        assert not answers.is_set()
        in_case.cancel()
        answers.set()


@pytest.mark.parametrize("respect_robots_txt", [True, False])
def test_a_host_whose_lookup_fails_has_that_reason(web, respect_robots_txt):
    url = f"http://{'a' * 64}.test/a.jpg"  # a part of a name cannot be so long: the lookup fails without DNS
    assert shown(fetch(web, [url], respect_robots_txt=respect_robots_txt, retries=0)) == ["dns_failed"]


def test_on_idle_is_called_while_nothing_arrives(web):
    beats = []
    with open_fetcher(web, respect_robots_txt=False, retries=0) as fetcher:
        fetcher.on_idle = lambda: beats.append(time.monotonic())
        assert [outcome.reason for _, outcome in fetcher.fetch([(0, web.url("silent"))])] == ["headers_too_slow"]
    assert len(beats) >= 2  # in the 1.5 s that headers may take


def test_no_more_than_the_allowed_requests_run_at_one_host(web):
    with open_fetcher(web, per_host=2) as fetcher:
        outcomes = list(fetcher.fetch((number, web.url("ok", f"/{number}")) for number in range(100)))
        assert fetcher.counters.connections == 2
    assert len(outcomes) == 100


def test_connections_and_robots_txt_are_kept_from_one_call_to_the_next(web):
    with open_fetcher(web, per_host=1) as fetcher:
        for _ in range(3):
            assert len(list(fetcher.fetch(enumerate([web.url("red.jpg"), web.url("blue.jpg")])))) == 2
        assert fetcher.counters.connections == 1
    assert Counter(web.asked_for("pictures")) == {"/robots.txt": 1, "/red.jpg": 3, "/blue.jpg": 3}


def test_urls_of_one_host_do_not_hold_up_those_behind_them(web):
    urls = [*[web.url("silent", f"/{number}") for number in range(200)], *[web.url("red.jpg")] * 20]
    with open_fetcher(web, in_flight=16, per_host=4) as fetcher:
        first = [ticket for ticket, _ in zip(fetcher.fetch(enumerate(urls)), range(20), strict=False)]
    assert sorted(ticket for ticket, _ in first) == list(range(200, 220))


def test_urls_are_taken_as_there_is_room_for_them(web):
    taken = []

    def urls():
        for number in range(10_000):
            taken.append(number)
            yield number, web.url("ok", f"/{number}")

    with open_fetcher(web, in_flight=8, look_ahead=20) as fetcher:
        for ticket, _ in fetcher.fetch(urls()):
            assert len(taken) - ticket <= 20 + 8 + 8
            if ticket == 200:
                break


def test_an_aborted_call_leaves_the_fetcher_usable(web):
    urls = [web.url(name) for name in ["silent", "slow_body", "red.jpg", "retry_after"]]
    with open_fetcher(web) as fetcher:
        outcomes = fetcher.fetch(enumerate(urls))
        assert next(outcomes)[0] == 2
        outcomes.close()
        assert [outcome for _, outcome in fetcher.fetch([(7, web.url("blue.jpg"))])] == [
            Fetched(b"blue", web.url("blue.jpg"))
        ]


def test_an_error_of_the_source_of_urls_is_raised(web):
    def urls():
        yield 0, web.url("red.jpg")
        raise OSError("the table is gone")

    with open_fetcher(web) as fetcher, pytest.raises(OSError, match="the table is gone"):
        list(fetcher.fetch(urls()))


def test_a_slow_caller_makes_no_host_late(web):
    urls = [*[web.url("red.jpg")] * 3, *[web.url("steady_but_long", f"/{number}") for number in range(3)]]
    with open_fetcher(web, timeout_seconds=1.0) as fetcher:
        started = time.monotonic()
        for ticket, outcome in fetcher.fetch(enumerate(urls)):
            if ticket < 3:
                time.sleep(0.4)
            else:
                assert outcome.reason == "timeout"
        assert time.monotonic() - started > 3 * 0.4 + 0.5


def test_bodies_wait_while_memory_is_full_and_none_is_lost(web, monkeypatch):
    body = bytes(range(256)) * 2000
    web.pictures |= {f"{number}.jpg": body + b"%d" % number for number in range(40)}
    monkeypatch.setattr("diptych_shards.fetch.transfer.MAX_HELD_BYTES", 2 * len(body))
    with open_fetcher(web, per_host=20) as fetcher:
        outcomes = []
        for number, outcome in fetcher.fetch((number, web.url(f"{number}.jpg")) for number in range(40)):
            assert fetcher._memory.held_bytes <= 3 * len(body) + 20 * 131_072
            outcomes.append((number, outcome.data))
        assert fetcher._memory.held_bytes == 0
    assert sorted(outcomes) == [(number, body + b"%d" % number) for number in range(40)]


def test_redirects_say_where_the_picture_was_found(web):
    outcomes = fetch(web, [web.url("redirect"), web.url("relative_redirect", "/a/picture.jpg")])
    assert outcomes[0].url == web.url("ok")
    assert outcomes[1].data == b"/b/caf%C3%A9%201.jpg"


def test_blocked_domains_are_not_requested_even_after_a_redirect(web):
    urls = [web.url("ok"), web.url("redirect"), web.url("red.jpg")]
    outcomes = fetch(web, urls, blocked_domains=frozenset({"OK.test."}))
    assert shown(outcomes) == ["blocked_domain", "blocked_domain", b"red"]
    assert web.asked_for("ok") == []


def test_robots_txt_that_was_forgotten_is_asked_for_again(web, monkeypatch):
    monkeypatch.setattr("diptych_shards.fetch.site.MAX_ROBOTS_KEPT", 60)
    names = ["robots_disallow", "robots_moved"]
    with open_fetcher(web) as fetcher:
        for _ in range(2):
            for name in names:
                urls = [web.url(name, "/private/1.jpg"), web.url(name)]
                assert {outcome for _, outcome in fetcher.fetch(enumerate(urls))} == {
                    FetchFailure("robots_txt", "disallowed by robots.txt"),
                    Fetched(b"picture", web.url(name)),
                }
    assert web.asked_for("robots_moved").count("/robots.txt") == 2


def test_a_robots_txt_that_is_gone_takes_no_room_from_others(web, monkeypatch):
    monkeypatch.setattr("diptych_shards.fetch.site.MAX_ROBOTS_KEPT", 60)
    with open_fetcher(web) as fetcher:
        with monkeypatch.context() as patch:
            patch.setattr("diptych_shards.fetch.site.ROBOTS_SECONDS", 0.2)
            list(fetcher.fetch([(0, web.url("robots_gone"))]))
        time.sleep(0.2)
        list(fetcher.fetch([(0, web.url("robots_gone"))]))
        num_asked = web.asked_for("robots_gone").count("/robots.txt")
        list(fetcher.fetch([(0, web.url("robots_disallow"))]))
        list(fetcher.fetch([(0, web.url("robots_gone"))]))
    assert num_asked >= 2 and web.asked_for("robots_gone").count("/robots.txt") == num_asked


def test_a_robots_txt_that_asks_for_a_long_pause_is_not_asked_for_again(web):
    outcomes = fetch(web, [web.url("robots_busy", f"/{number}") for number in range(5)], retries=5)
    assert set(shown(outcomes)) == {"robots_txt"}
    assert web.asked_for("robots_busy") == ["/robots.txt"]


@pytest.mark.parametrize("name", ["robots_disallow", "robots_endless", "robots_moved"])
def test_what_robots_txt_disallows_is_not_asked_for(web, name):
    urls = [web.url(name, "/private/1.jpg"), web.url(name, "/x/../private/2.jpg"), web.url(name, "/public.jpg")]
    assert shown(fetch(web, urls)) == ["robots_txt", "robots_txt", b"picture"]
    assert web.asked_for(name) == ["/robots.txt", "/public.jpg"]


def test_robots_txt_and_opt_outs_can_be_ignored(web):
    urls = [web.url("robots_disallow", "/private/1.jpg"), web.url("opted_out"), web.url("reserved")]
    assert shown(fetch(web, urls, respect_robots_txt=False, opt_out_directives=())) == [b"picture"] * 3
    assert "/robots.txt" not in [path for _, path in web.requests]


def test_certificates_of_the_user_are_trusted_for_their_hosts_only(web):
    outcomes = fetch(web, [web.url("tls_ok"), web.url("tls_wrong_host")], ca_file=str(web.certificate))
    assert shown(outcomes) == [b"picture of tls-ok.test", "tls_failed"]


def test_requests_say_who_asks_and_nothing_else(web, monkeypatch, tmp_path):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".netrc").write_text("machine ok.test login me password secret\n")
    with_password = web.url("ok").replace("http://", "http://me:secret@")
    fetch(web, [with_password], user_agent="mybot/1.0 (+https://example.com/bot)")
    assert {name for headers in web.headers for name in headers} == {"host", "user-agent", "accept", "accept-encoding"}
    assert {headers["user-agent"] for headers in web.headers} == {"mybot/1.0 (+https://example.com/bot)"}


@pytest.mark.parametrize("host", ["127.0.0.2", "2130706434", "0177.0.0.2", "127.2", "①②⑦.0.0.2", "[::ffff:127.0.0.2]"])
def test_no_spelling_of_an_address_passes_the_gate(web, host):
    assert shown(fetch(web, [f"http://{host}:{web.port}/a.jpg"])) == ["address_not_public"]
    assert web.refused_visits == 0


def test_a_name_with_an_allowed_and_a_refused_address_is_reached_at_the_allowed_one(web):
    entry = f"both.test:{web.port}:127.0.0.2,127.0.0.1"
    assert shown(fetch(web, [f"http://both.test:{web.port}/a.jpg"], resolve=[entry])) == [b"picture of both.test"]
    assert web.refused_visits == 0


def test_malformed_urls_fail_and_the_others_do_not(web):
    urls = ["", "no url", "ftp://ok.test/a.jpg", "data:image/png;base64,AAAA", f"http://ok.test:{web.port}/a b.jpg"]
    assert shown(fetch(web, urls)) == [
        "bad_url",
        "bad_url",
        "scheme_not_allowed",
        "scheme_not_allowed",
        b"picture at /a%20b.jpg",
    ]


def test_failures_name_neither_hosts_nor_numbers_of_their_own(web):
    messages = {
        outcome.message for outcome in fetch(web, [web.url("not_found"), web.url("dead"), web.url("opted_out")])
    }
    assert messages == {
        "HTTP Error 404: Not Found",
        "connection failed",
        "Use of image disallowed by X-Robots-Tag directive",
    }


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"allow_networks": ("10.0.0.1/8",)}, "'10.0.0.1/8' is not a network"),
        ({"timeout_seconds": 0}, "timeout_seconds is 0; it must be above 0"),
        ({"timeout_seconds": math.nan}, "timeout_seconds is nan"),
        ({"connect_timeout_seconds": math.inf}, "connect_timeout_seconds is inf"),
        ({"min_bytes_per_second": math.nan}, "min_bytes_per_second is nan"),
        ({"retries": -1}, "retries is -1"),
        ({"ca_file": "/no/such.pem"}, "ca_file '/no/such.pem' is not a file of certificates in PEM .No such"),
        ({"ca_file": __file__}, "test_fetcher.py' is not a file of certificates in PEM"),
        ({"blocked_domains": frozenset({"a domain"})}, "bad host name"),
        ({"user_agent": "é"}, "user_agent 'é' must be"),
    ],
)
def test_options_that_make_no_sense_are_refused(option, words):
    with pytest.raises(ValueError, match=words):
        Fetcher(FetchOptions(**option))


def test_no_answer_ends_in_a_traceback(web, capfd):
    fetch(web, [web.url(name) for name in ("other_protocol", "not_http", "endless_hints")])
    assert capfd.readouterr().err == ""


def test_localhost_is_this_machine_and_nothing_else(web):
    entry = f"local.test:{web.port}:127.0.0.1"
    options = FetchOptions(allow_networks=("localhost",), **PATIENCE)
    urls = [f"http://local.test:{web.port}/a.jpg", "http://10.0.0.1/a.jpg", "http://169.254.169.254/a.jpg"]
    with Fetcher(options, resolve=[entry]) as fetcher:
        outcomes = dict(fetcher.fetch(enumerate(urls)))
    assert shown([outcomes[n] for n in range(3)]) == [b"picture of local.test", *["address_not_public"] * 2]
