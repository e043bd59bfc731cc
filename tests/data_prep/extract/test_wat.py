import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diptych_shards.extract import wat_record
from diptych_shards.extract.options import ExtractOptions
from diptych_shards.extract.wat_pairs import read_wat
from tests.data_prep.extract.crawls import extracted, record, warc_gz
from tests.data_prep.extract.crawls import wat_record as made

A = "https://a.example"
DIRECTIVES = ExtractOptions().stated_opt_outs
LINKS = [
    {"path": "A@/href", "url": "/elsewhere", "text": "IMG@/src"},
    {"path": "IMG@/src", "url": "x.jpg", "alt": "a house"},
    {"url": "/y.jpg", "alt": "a {dog}", "title": "t", "path": "IMG@/src"},
    {"path": "IMG@/src", "url": "z.jpg"},
    {"path": "IMG@/src", "url": "w.jpg", "alt": ""},
    {"path": "FORM@/action", "url": "/search", "method": "post"},
]


def found_in(block: bytes):
    return read_wat(block.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n\r\n"), ExtractOptions(), Counter())


def test_pictures_with_an_alt_are_pairs_and_the_record_of_the_page_is_named():
    found, report = extracted(warc_gz(made({"Links": LINKS})))
    assert found == [(f"{A}/dir/x.jpg", "a house"), (f"{A}/y.jpg", "a {dog}")]
    assert report.dropped == {"no caption": 2}
    page = found_in(made({"Links": LINKS}))
    assert (page.warc_file, page.record_offset) == ("crawl.warc.gz", 77)


@pytest.mark.parametrize("order", [("Links", "Head"), ("Head", "Links")])
def test_base_og_language_and_licence_are_read_from_the_head(order):
    head = {
        "Base": "/other/",
        "Title": "Title",
        "Metas": [{"property": "og:image", "content": "o.jpg"}, {"name": "HTML@/lang", "content": "de-AT"}],
        "Scripts": [{"path": "SCRIPT@/src", "url": "x.js"}],
        "Link": [{"path": "LINK@/href", "url": "//creativecommons.org/licenses/by/4.0/", "rel": "license"}],
    }
    content = {"Links": LINKS[:2], "Head": head}
    page = found_in(made({key: content[key] for key in order})).page
    assert list(page.pairs) == [(f"{A}/other/x.jpg", "a house"), (f"{A}/other/o.jpg", "Title")]
    assert page.language == "de-at"
    assert page.licence_url == "https://creativecommons.org/licenses/by/4.0/"


@pytest.mark.parametrize(
    "licence", [{"url": "http://creativecommons.org/licenses/by-sa/3.0/"}, {"url": f"{A}/our-terms", "rel": "license"}]
)
@pytest.mark.parametrize("others", [LINKS, LINKS[1:2]], ids=["parsed whole", "parsed in parts"])
def test_a_licence_that_a_link_in_the_text_names_is_found(licence, others):
    links = [*others, {"path": "A@/href", **licence}]
    assert found_in(made({"Links": links})).page.licence_url == licence["url"]


@pytest.mark.parametrize(
    "content",
    [
        b'{"HTML-Metadata"',
        b'"HTML-Metadata"',
        b'[{"HTML-Metadata":1}]',
        b'{"HTML-Metadata":' + b"[" * 100_000,
    ],
)
def test_a_record_that_is_no_json_is_counted_and_the_others_are_read(content):
    wrong = record(content, "metadata", content_type="application/json")
    found, report = extracted(warc_gz(made({"Links": LINKS}), wrong, made({"Links": LINKS[:2]})))
    assert len(found) == 3
    assert report.records == {"read": 2, "broken metadata": 1}


@pytest.mark.parametrize(
    "metadata",
    [
        {"Links": None},
        {"Links": [None, 1, "x", {"path": None}, {"path": "IMG@/src", "url": None, "alt": "x"}]},
        {"Links": [{"path": "IMG@/src", "alt": 7, "url": "x.jpg"}]},
        {"Links": {"path": "IMG@/src"}, "Head": [], "x": "IMG@/src"},
        {"Head": {"Metas": [{"property": "og:image", "content": None}, None], "Title": 3}},
        {"Links": [], "Head": {"Base": {}, "Metas": {}, "Link": 1}},
    ],
)
def test_records_of_an_odd_shape_give_nothing_and_do_no_harm(metadata):
    found, report = extracted(made(metadata) + made({"Links": LINKS[:2]}))
    assert found == [(f"{A}/dir/x.jpg", "a house")]
    assert report.records["read"] == 2


def test_halves_of_surrogate_pairs_and_bytes_that_are_not_utf8_cost_no_record():
    whole = made({"Links": LINKS[:2]})
    halved = whole.replace(b"a house", b"a \\ud83d house")
    found, _ = extracted(warc_gz(resized(halved), resized(whole.replace(b"a house", b"a \xff house"))))
    assert [caption for _, caption in found] == ["a \ufffd house", "a \ufffd house"]


def resized(content: bytes) -> bytes:
    block = content.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n\r\n")
    return record(block, "metadata", content_type="application/json")


TEXT = st.one_of(
    st.text(max_size=8),
    st.sampled_from(["}]", "},{", '"Links":[', "IMG@/src", '{"path":"IMG@/src"}', '"', "\\", "{", "}"]),
)
LINK = st.dictionaries(
    st.sampled_from(["path", "url", "alt", "text", "rel"]), st.one_of(TEXT, st.just("IMG@/src")), max_size=4
)
META = st.dictionaries(
    st.sampled_from(["property", "name", "content"]), st.one_of(TEXT, st.just("og:image")), max_size=3
)


@given(
    st.lists(LINK, max_size=5), st.lists(META, max_size=4), TEXT, st.dictionaries(st.just("Base"), TEXT),
    st.permutations(["Links", "Head"]), st.lists(LINK, max_size=3), st.dictionaries(TEXT, TEXT, max_size=3),
    st.booleans(),
)  # fmt: skip
def test_reading_parts_of_the_record_gives_what_parsing_all_of_it_gives(
    links, metas, title, base, order, head_links, headers, ascii_only
):
    head = {"Title": title, "Metas": metas, "Scripts": head_links, "Link": head_links, **base}
    content = {"Links": links, "Head": head}
    envelope = {
        "WARC-Header-Metadata": {"WARC-Date": title, "WARC-Target-URI": "https://a.example/"},
        "Payload-Metadata": {
            "HTTP-Response-Metadata": {"Headers": headers, "HTML-Metadata": {key: content[key] for key in order}}
        },
    }
    whole_record = {"Container": {"Filename": "x.gz", "Offset": "7"}, "Envelope": envelope}
    block = json.dumps(whole_record, separators=(",", ":"), ensure_ascii=ascii_only).encode("utf-8", "replace")
    whole = wat_record._read_whole(block)
    try:
        short = wat_record._read_parts(block, DIRECTIVES)
    except ValueError:
        return  # then the whole record is read
    pictures = [[(link.get("url"), link.get("alt")) for link in one.pictures] for one in (short, whole)]
    assert pictures[0] == pictures[1]
    assert short.page_url == whole.page_url == "https://a.example/"
    assert (short.base, short.warc_file, short.offset) == (whole.base, whole.warc_file, whole.offset)
    og = [[meta for meta in one.metas if str(meta.get("property")).startswith("og:")] for one in (short, whole)]
    if any("og:image" in meta["property"] for meta in og[1]):
        assert og[0] == og[1] and short.title == whole.title


def test_a_record_as_crawls_have_them_is_not_parsed_whole():
    block = made({"Head": {"Title": "t", "Metas": [{"property": "og:image", "content": "o.jpg"}]}, "Links": LINKS[1:2]})
    block = block.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n\r\n")
    short, whole = wat_record._read_parts(block, DIRECTIVES), wat_record._read_whole(block)
    assert short == whole._replace(pictures=short.pictures, may_have_licence=False)
    assert [(link["url"], link["alt"]) for link in short.pictures] == [("x.jpg", "a house")]


def test_headers_named_as_keys_of_the_record_are_not_taken_for_them():
    headers = {"WARC-Target-URI": "https://evil.example/", "Filename": "evil", "Offset": "666", "path": "IMG@/src"}
    block = made({"Links": LINKS[:2]}).partition(b"\r\n\r\n")[2].removesuffix(b"\r\n\r\n")
    record = json.loads(block)
    response = record["Envelope"]["Payload-Metadata"]["HTTP-Response-Metadata"]
    response["Headers"] = headers
    container = record.pop("Container")
    for shown in ({"Container": container, **record}, {**record, "Container": container}):
        page = read_wat(json.dumps(shown, separators=(",", ":")).encode(), ExtractOptions(), Counter())
        assert list(page.page.pairs) == [(f"{A}/dir/x.jpg", "a house")]
        assert (page.page.url[: len(A)], page.warc_file, page.record_offset) == (A, "crawl.warc.gz", 77)
