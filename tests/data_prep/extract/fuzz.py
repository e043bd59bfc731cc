"""Fuzz pages, records and addresses for hours, guided by coverage; for a person, not for pytest.

    pip install atheris
    python -m tests.data_prep.extract.fuzz CORPUS -timeout=10 -max_len=4096 -max_total_time=3600

CORPUS is a folder that keeps what was found; the other options are libFuzzer's.
"""

import gzip
import io
import sys
from collections import Counter

import atheris

with atheris.instrument_imports(include=["diptych_shards.extract"]):
    from diptych_shards.extract.charset import as_utf8
    from diptych_shards.extract.extract import pages_of
    from diptych_shards.extract.options import ExtractOptions
    from diptych_shards.extract.page import read_page
    from diptych_shards.extract.results import FileReport
    from diptych_shards.web_address import BadUrlError, BaseUrl
    from tests.data_prep.extract.crawls import PAGE_URL, record

OPTIONS = ExtractOptions(surrounding_text=True, max_page_bytes=1000)
WAT = (
    b'{"Container":{"Filename":"x","Offset":"1"},"Envelope":{"WARC-Header-Metadata":{"WARC-Target-URI":"http://a.b/"},'
    b'"Payload-Metadata":{"HTTP-Response-Metadata":{"HTML-Metadata":%b}}}}'
)


def read_file(content: bytes) -> None:
    for found in pages_of(io.BytesIO(content), OPTIONS, FileReport()):
        check(found.page.pairs)


def read_html(content: bytes) -> None:
    check(read_page(as_utf8(content, None), PAGE_URL, None, OPTIONS, Counter()).pairs)


def resolve(content: bytes) -> None:
    base, _, address = content.decode("utf-8", "replace").partition("\n")
    try:
        url = BaseUrl(PAGE_URL, base).resolve(address)
    except BadUrlError:
        return
    check({(url, "an address")})
    assert BaseUrl("https://elsewhere.example/").resolve(url) == url


def check(pairs) -> None:
    for url, caption in pairs:
        assert url.startswith(("http://", "https://")) and url.isascii() and len(url.split()) == 1, url
        assert caption and caption == " ".join(caption.split()), caption


TARGETS = (
    read_html,
    resolve,
    read_file,
    lambda content: read_file(b"\x1f\x8b\x08" + content),
    lambda content: read_file(gzip.compress(content, 1)),
    lambda content: read_file(record(content)),
    lambda content: read_file(record(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n" + content)),
    lambda content: read_file(record(b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=" + content)),
    lambda content: read_file(record(WAT % content, "metadata", content_type="application/json")),
)


def fuzz(content: bytes) -> None:
    """Run the target that the first byte chooses on the other bytes."""
    if content:
        TARGETS[content[0] % len(TARGETS)](content[1:])


if __name__ == "__main__":
    atheris.Setup(sys.argv, fuzz)
    atheris.Fuzz()
