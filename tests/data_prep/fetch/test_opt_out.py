import pytest

from diptych_shards.fetch.opt_out import forbids, product_token

DIRECTIVES = frozenset({"noai", "noimageai", "noml", "noindex", "noimageindex"})


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
def test_what_is_said_to_others_or_of_other_things_is_not(lines):
    assert not forbids(lines, "diptych-shards", DIRECTIVES)


def test_no_directives_disable_the_check():
    assert not forbids(["noai"], "diptych-shards", frozenset())


def test_none_says_noindex_and_no_other_directive():
    assert not forbids(["none"], "diptych-shards", frozenset({"noai", "noimageai"}))
    assert forbids(["none"], "diptych-shards", frozenset({"none"}))


def test_the_product_token_is_the_name_before_the_version():
    assert product_token("Diptych-Shards/0.1 (+https://example.com)") == "diptych-shards"
    assert product_token("mybot (x)") == "mybot"
