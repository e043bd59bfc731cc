"""What the owner of a page forbids is obeyed, and recorded if the user decides otherwise."""

import json

import pyarrow.parquet as pq
import pytest

from diptych_shards.cli import main
from tests.data_prep.extract.crawls import PAGE_URL, answer, extracted, img, page, page_record, record, warc_gz, write

SAID = [
    ('<meta name="robots" content="noai, noimageai">', ("noai", "noimageai")),
    ("<META NAME='ROBOTS' CONTENT='NoAI'>", ("noai",)),
    ("<meta name=robots content=none>", ("noindex",)),
    ("<meta content='max-snippet:5, noindex' name=robots>", ("noindex",)),
    ("<meta name=robots content='follow'><meta name=robots content='noimageindex'>", ("noimageindex",)),
    ("<meta name='diptych-shards' content='noai'>", ("noai",)),
    ("<meta name='tdm-reservation' content='1'>", ("tdm-reservation",)),
    ("<meta name=tdm-reservation content=' 1 '><meta name=robots content=noml>", ("noml", "tdm-reservation")),
]
NOT_SAID = [
    "<meta name=robots content='index, follow, max-image-preview:large'>",
    "<meta name=googlebot content='noai, noindex'>",
    "<meta name=robots content='googlebot: noai, noindex'>",
    "<meta name=description content='noai'>",
    "<meta name=tdm-reservation content=0>",
    "<!-- <meta name=robots content=noai> -->",
]
HEADERS = [
    ("X-Robots-Tag: noai", ("noai",)),
    ("x-robots-tag: nofollow\r\nX-Robots-Tag: noindex", ("noindex",)),
    ("X-Robots-Tag: none", ("noindex",)),
    ("X-Robots-Tag: otherbot: noai\r\nX-Robots-Tag: diptych-shards: noimageai", ("noimageai",)),
    ("TDM-Reservation: 1", ("tdm-reservation",)),
    ("X-Robots-Tag: otherbot: noai", ()),
    ("tdm-reservation: 0", ()),
]
HTML = "Content-Type: text/html; charset=utf-8"


def wat(metas: str = "", headers: str = HTML) -> bytes:
    """As Common Crawl writes the record of a page with this head."""
    tags = page_metas(metas)
    lines: dict[str, str | list[str]] = {}
    for line in headers.split("\r\n"):
        name, _, text = line.partition(": ")
        lines[name] = [lines[name], text] if name in lines else text
    answered = {
        "Response-Message": {"Status": "200"},
        "Headers": lines,
        "HTML-Metadata": {
            "Head": {"Metas": tags, "Title": "t"},
            "Links": [{"path": "IMG@/src", "url": "/x.jpg", "alt": "a picture"}],
        },
    }
    content = {
        "Container": {"Filename": "crawl.warc.gz", "Offset": "77"},
        "Envelope": {
            "WARC-Header-Metadata": {"WARC-Target-URI": PAGE_URL},
            "Payload-Metadata": {"HTTP-Response-Metadata": answered},
        },
    }
    block = json.dumps(content, separators=(",", ":")).encode()
    return warc_gz(record(block, "metadata", PAGE_URL, "application/json"))


def page_metas(html: str) -> list[dict[str, str]]:
    from html.parser import HTMLParser

    found = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: found.append(dict(attributes))  # type: ignore[method-assign]
    parser.feed(html)
    return found


@pytest.mark.parametrize(("metas", "stated"), SAID)
def test_a_page_that_opts_out_yields_no_pair_and_is_counted(metas, stated):
    for content in (warc_gz(page_record(metas + img("x"))), wat(metas)):
        pairs, report = extracted(content)
        assert pairs == [] and report.dropped == {"the page opts out": 1} and report.pages_with_pairs == 0
    assert page(metas + img("x")).opt_outs == stated


@pytest.mark.parametrize("metas", NOT_SAID)
def test_a_page_that_says_something_else_yields_its_pairs(metas):
    for content in (warc_gz(page_record(metas + img("x"))), wat(metas)):
        pairs, report = extracted(content)
        assert len(pairs) == 1 and not report.dropped


@pytest.mark.parametrize(("headers", "stated"), HEADERS)
def test_the_headers_of_a_page_count_as_its_metas_do(headers, stated):
    headers = f"{HTML}\r\n{headers}"
    for content in (warc_gz(record(answer(img("x"), headers))), wat(headers=headers)):
        assert len(extracted(content)[0]) == (not stated)
        assert len(extracted(content, opt_outs=())[0]) == 1
        assert len(extracted(content, opt_outs=("noarchive",))[0]) == 1


def test_the_user_may_decide_otherwise_and_sees_what_the_pages_say(tmp_path):
    pages = [page_record(metas + img("x")) for metas, _ in SAID] + [page_record(img("y"))]
    write(tmp_path, "a.warc.gz", warc_gz(*pages))
    assert main(["extract", str(tmp_path / "a.warc.gz"), str(tmp_path / "all"), "--opt-out", ""]) == 0
    column = pq.read_table(tmp_path / "all" / "a.warc.gz.parquet")["opt_out"].to_pylist()
    assert column == [*(",".join(stated) for _, stated in SAID), None]
    assert main(["extract", str(tmp_path / "a.warc.gz"), str(tmp_path / "some"), "--opt-out", "NoAI"]) == 0
    column = pq.read_table(tmp_path / "some" / "a.warc.gz.parquet")["opt_out"].to_pylist()
    assert column == [",".join(stated) or None for _, stated in [*SAID, ("", ())] if "noai" not in stated]


def test_a_folder_of_another_choice_is_refused(tmp_path, capsys):
    write(tmp_path, "a.warc.gz", warc_gz(page_record(img("x"))))
    assert main(["extract", str(tmp_path / "a.warc.gz"), str(tmp_path / "out")]) == 0
    assert main(["extract", str(tmp_path / "a.warc.gz"), str(tmp_path / "out")]) == 0
    assert main(["extract", str(tmp_path / "a.warc.gz"), str(tmp_path / "out"), "--opt-out", "noai"]) == 2
    assert "started with other options (opt_outs" in capsys.readouterr().err
