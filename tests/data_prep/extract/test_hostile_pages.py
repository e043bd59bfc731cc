"""Pages made to cost a parser quadratic time, or all memory. A test that hangs exceeds its time limit."""

import resource

import brotli
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych_shards.extract.tags import tags
from tests.data_prep.extract.crawls import extracted, img, page_record, pairs

SIZE = 150_000
PATTERNS = [
    "<div>",
    "<b>",
    "<table><tr><td>",
    "<ul><li>",
    "<figure>",
    "<figure><figcaption>",
    "<picture>",
    "<figcaption>x",
    "<picture><source srcset='a 1x'>",
    "<noscript>",
    "<svg>",
    "<template>",
    "<p><font size=%d>",
    "</p>",
    "</figure>",
    "<",
    "<a",
    "<a ",
    '<a "',
    "<a '",
    "<a b=",
    '<a b="',
    "<a b='",
    '<a b=">',
    "<a b='>\"",
    "<a =",
    "<a/",
    "<!",
    "<!-",
    "<!--",
    "<!-->",
    "<!-- --",
    "<script>",
    "<script></script",
    "<script><",
    "<style>",
    "<title>",
    "<textarea></",
    "<iframe ",
    "</",
    "</fi",
    "<?",
    "&",
    "&amp",
    "&#",
    "&#x",
    "a=",
    "=",
    '"',
    "'",
    " ",
    ">",
    "<img",
    "<img>",
    "<img alt>",
    "<img src=data:,",
    "<img alt='",
    "<img src=a alt=b>",
    "<img src=a alt=%d>",
    "<img src=a srcset='",
    "<meta property=og:image>",
    "<base href=",
    "<base href=/a/>",
    "<html lang=en>",
    "<a rel=license href=x>",
    "<a href=//creativecommons.org/licenses/by/>",
    "(",
    ",",
    "(,",
    "a,",
    "\0",
    "<script>-->",
    "<figure><img src=a><figcaption>b</figcaption></figure>",
]


@pytest.mark.timeout(5)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_no_pattern_repeated_over_a_page_takes_quadratic_time(pattern):
    number = SIZE // len(pattern)
    body = "".join(pattern % n for n in range(number)) if "%d" in pattern else pattern * number
    for start in ("<img src=a alt=b>", "<img srcset='", "<figure><img src=a><figcaption>"):
        # With surrounding texts, the page also takes all the steps that it takes without them.
        pairs(start + body + "<img src=z.jpg alt=z>", surrounding_text=True)


@pytest.mark.timeout(60)
def test_a_page_larger_than_allowed_is_cut_and_counted():
    html = b"<img src=first.jpg alt=first>" + b"<p>text</p>" * 950_000 + b"<img src=last.jpg alt=last>"
    found, report = extracted(page_record(html), max_page_bytes=1 << 20)
    assert [caption for _, caption in found] == ["first"]
    assert report.records == {"page cut": 1, "read": 1}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("length", [1 << 20, 1 << 28])
def test_a_page_packed_by_brotli_is_cut_however_much_it_says(length):
    packer = brotli.Compressor(quality=5, lgwin=22)
    packed = packer.process((img("first") + img("second")).encode())
    block = b" " * (1 << 20)
    packed += b"".join(packer.process(block) for _ in range(length >> 20)) + packer.finish()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    headers = "Content-Type: text/html\r\nContent-Encoding: br"
    found, report = extracted(page_record(packed, headers=headers), max_page_bytes=1 << 22)
    assert len(found) == 2
    assert report.records["page cut"] == (length > 1 << 22)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KB


def test_a_body_that_is_not_brotli_is_counted():
    _, report = extracted(page_record(b"\x8b\x00no", headers="Content-Type: text/html\r\nContent-Encoding: br"))
    assert report.records["content encoding unknown or wrong"] == 1


def test_many_pictures_on_a_page_are_bounded_and_counted():
    found, report = extracted(page_record("".join(f"<img src={n} alt={n}>" for n in range(50_000)) * 2))
    assert len(found) == 10_000
    assert report.dropped == {"too many pictures on the page": 90_000}


@pytest.mark.timeout(30)
def test_tables_in_tables_are_no_deeper_than_a_page():
    html = "<table><tr><td>" * 100_000 + "<img src=x.jpg alt=inside>" + "</td></tr></table>" * 100_000
    assert [caption for _, caption in pairs(html)] == ["inside"]


MARKUP = st.lists(
    st.one_of(
        st.sampled_from([*PATTERNS, "img", "src", "alt", "x.jpg", "/", "<img src=a.jpg alt=b>"]), st.text(max_size=4)
    ),
    max_size=40,
).map("".join)


@settings(deadline=None)
@given(MARKUP, MARKUP)
def test_any_markup_gives_pairs_with_text_and_absolute_addresses(before, after):
    html = f"{before}<img src=x.jpg alt='words'>{after}"
    for surrounding_text in (False, True):
        for url, caption in pairs(html, surrounding_text=surrounding_text):
            assert url.startswith(("http://", "https://"))
            assert caption and caption == " ".join(caption.split())


@given(MARKUP)
def test_tags_come_in_order_and_do_not_overlap(html):
    page = html.encode("utf-8", "replace")
    end = 0
    for tag in tags(page, frozenset((b"img", b"a", b"figure", b"/figure", b"title", b"script"))):
        assert end <= tag.start < tag.end <= len(page)
        assert page[tag.start : tag.start + 1] == b"<" and page[tag.end - 1 : tag.end] == b">"
        end = tag.end
