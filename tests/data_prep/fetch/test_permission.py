import time

import pytest

from diptych_shards.fetch.permission import Robots, decode_robots, forbids, product_token

DIRECTIVES = frozenset({"noai", "noimageai", "noml", "noindex", "noimageindex"})


def allows(text, *paths, agent="diptych-shards"):
    robots = Robots(text, agent)
    return [robots.allows("http://example.com" + path) for path in paths]


def test_the_group_that_names_us_goes_before_the_one_for_all():
    text = "User-agent: *\nDisallow: /\n\nUser-agent: Diptych-Shards\nDisallow: /private\n"
    assert allows(text, "/a.jpg", "/private/a.jpg") == [True, False]


def test_rules_for_other_agents_are_not_ours_in_any_group():
    text = (
        "User-agent: GPTBot\nUser-agent: CCBot # and\nDisallow: /\n\nUser-agent: CCBot\nUser-agent: *\nDisallow: /x\n"
    )
    assert allows(text, "/a.jpg", "/x/a.jpg") == [True, False]


def test_the_longest_rule_decides_and_wildcards_count():
    text = "User-agent: *\nDisallow: /a/\nAllow: /a/public/\nDisallow: /*.gif$\n"
    assert allows(text, "/a/b.jpg", "/a/public/b.jpg", "/c.gif", "/c.gif?x") == [False, True, False, True]


def test_encoded_paths_are_decoded_before_they_are_compared():
    assert allows("User-agent: *\nDisallow: /caf\u00e9/\n", "/caf%C3%A9/a.jpg", "/cafe/a.jpg") == [False, True]


def test_an_empty_or_malformed_robots_txt_allows_everything():
    for text in ["", "\n\n", "<html><body>404</body></html>", "\x00\x01", "Disallow: /"]:
        assert allows(text, "/a.jpg") == [True]


def test_a_delay_is_noticed():
    assert Robots("User-agent: *\nCrawl-delay: 10\n", "diptych-shards").has_delay
    assert not Robots("User-agent: *\nDisallow:\n", "diptych-shards").has_delay


def test_a_byte_order_mark_and_bytes_that_are_not_utf8_do_no_harm():
    text = decode_robots(b"\xef\xbb\xbfUser-agent: *\nDisallow: /x\n# \xff\xfe\n")
    assert allows(text, "/x", "/y") == [False, True]


def test_thousands_of_agents_above_thousands_of_rules_cost_no_more_than_their_lines():
    # Protego alone would make 36 million rules of it: gigabytes, and minutes.
    for spelling in ("User-agent: bot%d", "user  agent bot%d", "useragent:bot%d"):
        agents = "\n".join(spelling % number for number in range(6000))
        text = agents + "\nUser-agent: *\n" + "\n".join(f"Disallow: /{number}/" for number in range(6000))
        started = time.process_time()
        assert allows(text, "/5999/a.jpg", "/a.jpg") == [False, True]
        assert time.process_time() - started < 5


def test_wildcards_do_not_explode():
    started = time.process_time()
    assert allows("User-agent: *\nDisallow: /" + "*a" * 200 + "*b\n", "/" + "a" * 8000) == [True]
    assert time.process_time() - started < 2


@pytest.mark.parametrize(
    "lines",
    [
        ["noai"],
        ["NoAI"],
        ["none"],
        ["NONE"],
        ["otherbot: noai", "diptych-shards: None"],
        ["max-snippet:5, none"],
        ["noarchive noai"],
        ["diptych-shards: nofollow; noindex"],
        ["nofollow, noimageai"],
        ["nofollow", "noml"],
        ["max-snippet:5, noai"],
        ["max-snippet: 5 , noai"],
        ["unavailable_after: Wed, 01 Jan 2031 00:00:00 GMT, noai"],
        ["unavailable_after: Wednesday, 01-Jan-31 00:00:00 GMT, noai"],
        ["unavailable_after: 2031-01-01T00:00:00+00:00, noai"],
        ["diptych-shards: noai"],
        ["Diptych-Shards: nofollow, noai"],
        ["*: noai"],
        ["otherbot: noindex", "noai"],
        ["otherbot: noindex, diptych-shards: noai"],
        ["max-image-preview:large,max-video-preview:-1,noimageindex"],
    ],
)
def test_what_is_forbidden_to_us_or_to_all_is_forbidden(lines):
    assert forbids(lines, "diptych-shards", DIRECTIVES)


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [""],
        ["all"],
        ["nofollow, noarchive"],
        ["otherbot: noai"],
        ["otherbot: none"],
        ["nonexistent"],
        ["max-image-preview: none"],
        ["otherbot: nofollow, noai, noindex"],
        ["diptych: noai"],
        ["max-snippet:5"],
        ["unavailable_after: Wed, 01 Jan 2031 00:00:00 GMT"],
        ["noaiding"],
    ],
)
def test_directives_for_others_or_for_other_things_forbid_nothing(lines):
    assert not forbids(lines, "diptych-shards", DIRECTIVES)


def test_no_directives_disable_the_check():
    assert not forbids(["noai"], "diptych-shards", frozenset())


def test_none_means_noindex_and_no_other_of_our_directives():
    assert not forbids(["none"], "diptych-shards", frozenset({"noai", "noimageai"}))
    assert forbids(["none"], "diptych-shards", frozenset({"none"}))


def test_the_product_token_is_the_name_before_the_version():
    assert product_token("Diptych-Shards/0.1 (+https://example.com)") == "diptych-shards"
    assert product_token("mybot (x)") == "mybot"
