import pytest
from hypothesis import given
from hypothesis import strategies as st

from diptych_shards.fetch.outcome import UrlError
from diptych_shards.fetch.url import MAX_URL_BYTES, is_within, parse_url, read_domains

AS_A_BROWSER = {
    "http://example.com": "http://example.com/",
    "HTTP://EXAMPLE.com:80/A.jpg": "http://example.com/A.jpg",
    "https://example.com:443/a.jpg": "https://example.com/a.jpg",
    "https://example.com:8443/a.jpg": "https://example.com:8443/a.jpg",
    "  http://example.com/a.jpg\r\n": "http://example.com/a.jpg",
    "//example.com/a.jpg": "https://example.com/a.jpg",
    "http://example.com/a b.jpg?c d": "http://example.com/a%20b.jpg?c%20d",
    "http://example.com/caf\u00e9.jpg?q=\u00e9": "http://example.com/caf%C3%A9.jpg?q=%C3%A9",
    "http://example.com/caf%C3%A9.jpg": "http://example.com/caf%C3%A9.jpg",
    "http://example.com/100%.jpg": "http://example.com/100%.jpg",
    "http://example.com/a.jpg?w=1&amp;h=2": "http://example.com/a.jpg?w=1&h=2",
    "http://example.com/a.jpg?w=1&amp;amp;h=2": "http://example.com/a.jpg?w=1&h=2",
    "http://example.com/a.jpg#top": "http://example.com/a.jpg",
    "http://example.com?a=1": "http://example.com/?a=1",
    "http://example.com\\a\\b.jpg": "http://example.com/a/b.jpg",
    "http://example.com/a/./b/../c.jpg": "http://example.com/a/c.jpg",
    "http://example.com/a/%2E%2e/b/.": "http://example.com/b/",
    "http://example.com/../../a.jpg": "http://example.com/a.jpg",
    "http://example.com/a..b/c...jpg": "http://example.com/a..b/c...jpg",
    "http://me:secret@example.com/a.jpg": "http://example.com/a.jpg",
    "http://good.com@evil.com/a.jpg": "http://evil.com/a.jpg",
    "http://b\u00fccher.example/a.jpg": "http://xn--bcher-kva.example/a.jpg",
    "http://B\u00dcCHER.example/a.jpg": "http://xn--bcher-kva.example/a.jpg",
    "http://\u4f8b\u3048.\u30c6\u30b9\u30c8/a.jpg": "http://xn--r8jz45g.xn--zckzah/a.jpg",
    "http://example\u3002com/a.jpg": "http://example.com/a.jpg",
    "http://\u2460\u2461\u2466.0.0.1/a.jpg": "http://127.0.0.1/a.jpg",
    "http://%65xample.com/a.jpg": "http://example.com/a.jpg",
    "http://a_b.example.com/a.jpg": "http://a_b.example.com/a.jpg",
    "http://[2606:4700:0:0::1]:8080/a.jpg": "http://[2606:4700::1]:8080/a.jpg",
    "http://example.com./a.jpg": "http://example.com./a.jpg",
    "http://fa\u00df.de/a.jpg": "http://xn--fa-hia.de/a.jpg",
    "http://\u2603.net/a.jpg": "http://xn--n3h.net/a.jpg",
    "http://i\u2764.ws/a.jpg": "http://xn--i-7iq.ws/a.jpg",
    "http:example.com": "http://example.com/",
    "http:///example.com/a.jpg": "http://example.com/a.jpg",
    "http://exa\nmple.com/a\tb.jpg": "http://example.com/ab.jpg",
    "http://example.com/a\r\nHost: evil": "http://example.com/aHost:%20evil",
    "\\\\example.com\\a.jpg": "https://example.com/a.jpg",
    "http://example.com:080/a.jpg": "http://example.com/a.jpg",
    "http://example.com:/a.jpg": "http://example.com/a.jpg",
    "http://a@b@example.com/a.jpg": "http://example.com/a.jpg",
    "http://example.com\\@evil.com/a.jpg": "http://example.com/@evil.com/a.jpg",
    "http://example.com?q='\u00e9'": "http://example.com/?q=%27%C3%A9%27",
    "http://2130706434/a.jpg": "http://127.0.0.2/a.jpg",
    "http://0x7f.1/a.jpg": "http://127.0.0.1/a.jpg",
    "http://127.1./a.jpg": "http://127.0.0.1/a.jpg",
    "http://%31%32%37.0.0.1/a.jpg": "http://127.0.0.1/a.jpg",
    "http://[::ffff:127.0.0.1]/a.jpg": "http://[::ffff:7f00:1]/a.jpg",
    'http://example.com/"<>`{}|.jpg': "http://example.com/%22%3C%3E%60%7B%7D|.jpg",
}
REFUSED = {
    "": "bad_url",
    "example.com/a.jpg": "bad_url",
    "http://exa mple.com/": "bad_url",
    "http://example.com/a\x00.jpg": "bad_url",
    "http://example.com/\ud800.jpg": "bad_url",
    "http://example.com:99999/": "bad_url",
    "http://example.com:-1/": "bad_url",
    "http://256.1.1.1/": "bad_url",
    "http://1.2.3.4.5/": "bad_url",
    "http://a%2fb/": "bad_url",
    "http://a,b/": "bad_url",
    "http://[::1/": "bad_url",
    "http://[v1.x]/": "bad_url",
    "http://a..b/": "bad_url",
    "http://" + "\u00e9" * 64 + ".com/": "bad_url",
    "http://example.com/" + "a" * MAX_URL_BYTES: "bad_url",
    "http://example.com/" + "\u00e9" * (MAX_URL_BYTES // 2): "bad_url",
    "http://example.com:22/": "port_not_allowed",
    "http://example.com:0/": "port_not_allowed",
    "file:///etc/passwd": "scheme_not_allowed",
    "ftp://example.com/a.jpg": "scheme_not_allowed",
    "data:image/png;base64,AAAA": "scheme_not_allowed",
    "javascript:alert(1)": "scheme_not_allowed",
    "gopher://127.0.0.1:70/": "scheme_not_allowed",
    "dict://127.0.0.1:11211/": "scheme_not_allowed",
}


@pytest.mark.parametrize(("text", "wanted"), AS_A_BROWSER.items())
def test_urls_are_parsed_as_a_browser_would(text, wanted):
    assert str(parse_url(text)) == wanted


@pytest.mark.parametrize(("text", "reason"), REFUSED.items())
def test_refused_urls_have_a_reason(text, reason):
    with pytest.raises(UrlError) as caught:
        parse_url(text)
    assert caught.value.failure.reason == reason


@pytest.mark.parametrize(
    ("location", "wanted"),
    [
        ("b.jpg", "https://example.com:8443/x/b.jpg"),
        ("/b.jpg", "https://example.com:8443/b.jpg"),
        ("../../b.jpg", "https://example.com:8443/b.jpg"),
        ("?c=d", "https://example.com:8443/x/a.jpg?c=d"),
        ("//other.com/b.jpg", "https://other.com/b.jpg"),
        ("http://other.com/b.jpg", "http://other.com/b.jpg"),
        ("\\\\other.com\\b.jpg", "https://other.com/b.jpg"),
    ],
)
def test_a_redirect_is_relative_to_where_it_was_found(location, wanted):
    assert str(parse_url(location, base=parse_url("https://example.com:8443/x/a.jpg"))) == wanted


@given(st.text(max_size=40))
def test_any_text_gives_a_url_in_ascii_or_a_reason(text):
    for candidate in (text, "http://" + text, "http://example.com/" + text):
        try:
            url = str(parse_url(candidate))
        except UrlError:
            continue
        assert url.isascii() and url.isprintable() and " " not in url
        assert str(parse_url(url)) == url


def test_a_domain_contains_the_domains_below_it():
    domains = frozenset({"example.com", "xn--bcher-kva.example"})
    for host in ["example.com", "a.b.example.com", "example.com.", "www.xn--bcher-kva.example"]:
        assert is_within(host, domains)
    for host in ["badexample.com", "example.com.evil.org", "com", "example"]:
        assert not is_within(host, domains)


def test_a_list_of_domains_is_read_as_people_write_it(tmp_path):
    path = tmp_path / "domains.txt"
    path.write_text("# ours\nExample.com\n\n*.ads.example  # theirs\n.b\u00fccher.example\n", encoding="utf-8")
    assert read_domains(path) == {"example.com", "ads.example", "xn--bcher-kva.example"}
    path.write_text("example.com\nnot a domain\n")
    with pytest.raises(ValueError, match="line 2: 'not a domain' is not a domain"):
        read_domains(path)
