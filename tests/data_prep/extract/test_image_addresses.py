import re
from urllib.parse import urljoin, urlsplit

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from diptych_shards.extract.image_element import candidates, largest
from diptych_shards.web_address import BadUrlError, BaseUrl, last_segment


@pytest.mark.parametrize(
    ("url", "absolute"),
    [
        ("x.jpg", "https://a.example/dir/x.jpg"),
        ("../x.jpg", "https://a.example/x.jpg"),
        ("../../../x.jpg", "https://a.example/x.jpg"),
        ("/x.jpg", "https://a.example/x.jpg"),
        ("/a/./b/../x.jpg", "https://a.example/a/x.jpg"),
        ("//b.example/x.jpg", "https://b.example/x.jpg"),
        ("?x=1", "https://a.example/dir/page?x=1"),
        ("?", "https://a.example/dir/page?"),
        ("HTTP://B.example/x.jpg", "http://b.example/x.jpg"),
        ("https://B.example/x.jpg", "https://b.example/x.jpg"),
        ("https://b.example:443/x.jpg", "https://b.example/x.jpg"),
        ("https://b.example/y/../x.jpg", "https://b.example/x.jpg"),
        ("https://fa\u00df.example/x.jpg", "https://xn--fa-hia.example/x.jpg"),
        ("https://\u2603.example/x.jpg", "https://xn--n3h.example/x.jpg"),
        ("https://%62.example/x.jpg", "https://b.example/x.jpg"),
        ("https://2130706433/x.jpg", "https://127.0.0.1/x.jpg"),
        ("https://b.example./x.jpg", "https://b.example./x.jpg"),
        ("https://b.example/x.jpg?q='", "https://b.example/x.jpg?q=%27"),
        ("x\\y.jpg", "https://a.example/dir/x/y.jpg"),
        ("https:x.jpg", "https://a.example/dir/x.jpg"),
        ("https://a@b@c/x.jpg", "https://a%40b@c/x.jpg"),
        ("http:\\\\b.example\\x.jpg", "http://b.example/x.jpg"),
        ("http:////b.example/x.jpg", "http://b.example/x.jpg"),
        ("https://b.example:8080/x.jpg#part", "https://b.example:8080/x.jpg"),
        ("https://b.example/a b.jpg", "https://b.example/a%20b.jpg"),
        ("https://b.example/é.jpg?q=é", "https://b.example/%C3%A9.jpg?q=%C3%A9"),
        ("https://b.example/%C3%A9%zz.jpg", "https://b.example/%C3%A9%zz.jpg"),
        ("https://b.example/x{1}.jpg?a=\"<>", "https://b.example/x%7B1%7D.jpg?a=%22%3C%3E"),
        ("https://bücher.example/x.jpg", "https://xn--bcher-kva.example/x.jpg"),
        ("https://user:word@b.example/x.jpg", "https://user:word@b.example/x.jpg"),
        ("https://[2001:db8::1]/x.jpg", "https://[2001:db8::1]/x.jpg"),
        ("https://b.example/x.jpg?a=1&amp;b=2", "https://b.example/x.jpg?a=1&b=2"),
        (" \n https://b.example/\tx.jpg ", "https://b.example/x.jpg"),
        ("https://b.example", "https://b.example/"),
    ],
)  # fmt: skip
def test_addresses_become_what_a_browser_would_fetch(url, absolute):
    assert BaseUrl("https://a.example/dir/page").resolve(url) == absolute


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("", "empty"),
        ("#x", "empty"),
        ("DATA:image/png;base64," + "A" * 100_000, "data"),
        ("mailto:a@b.example", "scheme"),
        ("ftp://b.example/x.jpg", "scheme"),
        ("https://", "bad"),
        ("https:///", "bad"),
        ("https://a b/x.jpg", "bad"),
        ("https://.../x.jpg", "bad"),
        ("https://b.example:port/x.jpg", "bad"),
        ("https://" + "é" * 80 + ".example/", "bad"),
        ("https://" + "é." * 150 + "example/", "bad"),
        ("java\tscript:alert(1)", "scheme"),
        ("https://256.1.1.1/x.jpg", "bad"),
        ("//[/x.jpg", "bad"),
        ("/" + "x" * 100_000, "long"),
        ("/" + "é" * 700, "long"),
    ],
)
def test_what_cannot_be_fetched_is_refused_with_a_reason(url, why):
    with pytest.raises(BadUrlError) as refused:
        BaseUrl("https://a.example/dir/page").resolve(url)
    assert refused.value.why == why


@pytest.mark.parametrize(
    ("page", "url", "absolute"),
    [
        ("/20150920id_/http://b.example/dir/page", "x.jpg", "/20150920id_/http://b.example/dir/x.jpg"),
        ("/20150920id_/http://b.example/dir/page", "../x//y.jpg", "/20150920id_/http://b.example/x//y.jpg"),
        ("//a//page", "../../x.jpg", "//x.jpg"),
        ("//a//page?q=/b/c", "?q=//d", "//a//page?q=//d"),
    ],
)
def test_empty_segments_of_a_path_stay_as_in_a_browser(page, url, absolute):
    assert BaseUrl(f"https://a.example{page}").resolve(url) == f"https://a.example{absolute}"


@given(st.text(), st.text(), st.one_of(st.none(), st.text()))
def test_any_text_becomes_an_ascii_address_with_a_host_or_is_refused(url, page, base):
    for page_url in (page, "https://a.example/b", f"http://{page}"):
        try:
            found = BaseUrl(page_url, base).resolve(url)
        except BadUrlError:
            continue
        parts = urlsplit(found)
        assert parts.scheme in ("http", "https") and parts.hostname
        assert found.isascii() and found.isprintable() and " " not in found and "#" not in found
        assert last_segment(found) in found


PATH = st.text("ab./?", max_size=12).map(lambda path: re.sub("/+", "/", path))  # urljoin drops empty segments


PAGE = st.text("ab/?", max_size=12).map(lambda path: re.sub("/+", "/", path))


@given(PATH, PAGE)
def test_relative_addresses_are_resolved_as_urljoin_does(url, page):
    assume(url != "?")  # urljoin takes an empty query for none
    page_url = f"https://a.example/{page.lstrip('/')}"
    try:
        found = BaseUrl(page_url).resolve(url)
    except BadUrlError as error:
        assert error.why in ("empty", "bad")
    else:
        assert found.rstrip("?") == urljoin(page_url, url).rstrip("?")  # urljoin drops an empty query


@pytest.mark.parametrize(
    ("srcset", "url"),
    [
        ("a.jpg 1x, b.jpg 2x", "b.jpg"),
        ("a.jpg 320w,b.jpg 640w", "b.jpg"),
        ("a.jpg,b.jpg 2x", "a.jpg,b.jpg"),
        ("a,1.jpg 100w, b,2.jpg 200w", "b,2.jpg"),
        ("a.jpg, b.jpg 3x", "b.jpg"),
        ("a.jpg,, b.jpg 3x,", "b.jpg"),
        ("a.jpg 2x (x, y), b.jpg 1x", "a.jpg"),
        ("a.jpg 100w 50h, b.jpg 90w 500h", "a.jpg"),
        ("data:image/gif;base64,R0lGOD 1w, b.jpg 5w", "b.jpg"),
        ("  only.jpg  ", "only.jpg"),
        ("a.jpg huge, b.jpg 0.5x", "a.jpg"),
        ("a 1x, b 1.6920415224913x, c 1.5x", "b"),
        ("a .5x, b .75x", "b"),
    ],
)
def test_the_largest_candidate_of_a_srcset(srcset, url):
    found = largest(candidates(srcset))
    assert found is not None and found.url == url


def test_a_srcset_without_a_candidate_has_none():
    assert largest(candidates(" , ,")) is None


@given(st.text("a,() \t1wx.\n", max_size=200))
def test_any_srcset_is_read(srcset):
    for candidate in candidates(srcset):
        assert candidate.url and not candidate.url.endswith(",") and " " not in candidate.url
