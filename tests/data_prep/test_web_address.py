"""Addresses are written by the URL standard, also those that are not parsed."""

from urllib.parse import urlsplit

import ada_url
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diptych_shards.fetch.outcome import UrlError
from diptych_shards.fetch.url import parse_url
from diptych_shards.web_address import BaseUrl, absolute, is_plain, split, split_plain

HOSTS = st.text("ab0.-_xn%A", min_size=1, max_size=9)
RESTS = st.lists(
    st.one_of(st.sampled_from([".", "..", "/", "%2e", "?", "&amp;"]), st.characters(codec="ascii")), max_size=9
)


@given(st.sampled_from(["http", "https"]), HOSTS, RESTS.map("".join))
def test_a_plain_address_is_one_that_the_standard_leaves_as_it_is(scheme, host, rest):
    address = f"{scheme}://{host}/{rest}"
    if is_plain(address):
        assert ada_url.normalize_url(address) == address
        assert split_plain(address) == (scheme, host, f"/{rest}")


@pytest.mark.parametrize(
    "address",
    [
        "http://fa\u00df.de/a.jpg",
        "http://\u2603.net/a b.jpg?\u00e9",
        "http://EXAMPLE.com./../a.jpg",
        "http://0x7f.1:8080/a.jpg",
        "http://example.com/a.jpg?x='1'&amp;y",
        "http:\\\\b\u00fccher.example\\a.jpg",
    ],
)
def test_extract_and_fetch_write_the_same_address(address):
    assert BaseUrl("http://a.example/").resolve(address) == str(parse_url(address)) == absolute(address)


@given(st.text(max_size=30))
def test_the_host_is_the_one_that_any_other_parser_finds(text):
    try:
        url = parse_url(f"http://{text}")
    except UrlError:
        return
    scheme, host, _, _ = split(str(url))
    other = urlsplit(str(url))
    assert (scheme, host.strip("[]")) == (other.scheme, other.hostname)
