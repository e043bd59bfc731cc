"""Extraction checked on real WARC files, record by record and picture by picture; one line of JSON.

The files come from `samples.py`. The records are read a second time by warcio, their pages by `dom.py`. Each `<img>`
with an alt and an http(s) address, unless a rule of ours leaves it out, must be among the pairs, with that address and
caption (`compared`); and its page must contain each pair. Each difference has a line of its own, with the rule that
makes it; the status is 1 if there is one without a rule.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple

import brotli
import pyarrow
from benchmarks.extract.dom import DomImage, read_dom
from benchmarks.extract.samples import Sample, ensure_downloaded, samples
from warcio.archiveiterator import ArchiveIterator
from warcio.bufferedreaders import BufferedReader, ChunkedDataReader
from warcio.exceptions import ArchiveLoadFailed
from warcio.statusandheaders import StatusAndHeadersParser

from diptych_shards.extract.extract import pages_of
from diptych_shards.extract.options import ExtractOptions
from diptych_shards.extract.pairs import CaptionSource, PairDetails, junk_reason
from diptych_shards.extract.records import BROKEN, read_records
from diptych_shards.extract.results import FileReport
from diptych_shards.web_address import MAX_URL_CHARACTERS

OPTIONS = ExtractOptions()
Pairs = dict[tuple[str, str], PairDetails]


class OtherRecord(NamedTuple):
    """As warcio reads it."""

    offset: int | None
    kind: str
    url: str
    block: bytes


class OtherPage(NamedTuple):
    offset: int | None
    url: str
    body: bytes
    charset: str | None


@dataclass
class Findings:
    counts: Counter[str] = field(default_factory=Counter)
    by_rule: Counter[str] = field(default_factory=Counter)

    def missed(self, what: str, where: str, rule: str | None = None) -> None:
        print(f"{where}: missed {what}" + (f" (rule: {rule})" if rule else ""))
        if rule:
            self.by_rule[rule] += 1
        else:
            self.counts["missed"] += 1

    def extra(self, what: str, where: str) -> None:
        print(f"{where}: extra {what}")
        self.counts["extra"] += 1


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    ensure_downloaded()
    findings = Findings()
    for sample in samples():
        compare_records(sample, findings)
        compare_pages(sample, findings)
    counts = findings.counts
    named = ("files", "records", "pages", "saved_pages", "pairs", "compared", "missed", "extra")
    result = {"benchmark": "extract_real", **{name: counts[name] for name in named}}
    print(json.dumps({**result, "left_out_by_rule": dict(findings.by_rule.most_common())}))
    sys.exit(1 if counts["missed"] or counts["extra"] else 0)


def compare_records(sample: Sample, findings: Findings) -> None:
    broken: Counter[str] = Counter()
    ours = [
        OtherRecord(record.offset, record.kind.decode(), record.target, bytes(record.block))
        for record in read_records(io.BytesIO(sample.content), broken, max_block_bytes=OPTIONS.max_page_bytes)
    ]
    theirs = [record for record, _ in _records(sample.content)]
    if theirs and theirs[0].offset is None:
        ours = [record._replace(offset=None) for record in ours]
    findings.counts["files"] += sample.is_recorded
    findings.counts["records"] += len(theirs) if sample.is_recorded else 0
    rule = "counted as broken" if broken[BROKEN] else None
    for record in theirs:
        if record not in ours:
            findings.missed(f"record: {record.kind} {record.url}", f"{sample.name} at {record.offset}", rule)
    for record in ours:
        if record not in theirs:
            findings.extra(f"record: {record.kind} {record.url}", f"{sample.name} at {record.offset}")


def compare_pages(sample: Sample, findings: Findings) -> None:
    report = FileReport()
    ours: dict[tuple[int | None, str], Pairs] = defaultdict(dict)
    for found in pages_of(io.BytesIO(sample.content), OPTIONS, report):
        ours[found.record_offset, found.page.url].update(found.page.pairs)
        findings.counts["pairs"] += len(found.page.pairs)
    num_pages = 0
    for page in _pages(sample, findings):
        num_pages += 1
        key = next((key for key in ours if key[1] == page.url and page.offset in (None, key[0])), None)
        where = f"{sample.name} at {page.offset}, {page.url}"
        compare_page(page, ours.pop(key) if key else {}, where, findings)
    for (offset, url), pairs in ours.items():
        findings.extra(f"page with {len(pairs)} pairs", f"{sample.name} at {offset}, {url}")
    if report.records["read"] != num_pages:
        findings.missed(f"pages: {report.records['read']} read of {num_pages}", sample.name)
    findings.counts["pages" if sample.is_recorded else "saved_pages"] += num_pages


def compare_page(page: OtherPage, ours: Pairs, where: str, findings: Findings) -> None:
    dom = read_dom(page.body, page.charset, page.url)
    for number, image in enumerate(dom.images):
        if not image.caption:
            continue
        rule = _rule(image)
        if rule:
            findings.by_rule[rule] += 1
            continue
        findings.counts["compared"] += 1
        if (image.url, image.caption) not in ours:
            neighbours = dom.images[max(0, number - 1) : number + 2]
            is_copy = any(
                other.in_noscript != image.in_noscript and (other.url, image.caption) in ours for other in neighbours
            )
            rule = "copy of the picture beside it" if is_copy else None
            findings.missed(f"{image.url} {image.caption!r}", where, rule)
    by_alt = {(image.url, image.caption) for image in dom.images}
    for (url, caption), details in ours.items():
        is_there = {
            CaptionSource.ALT: (url, caption) in by_alt,
            CaptionSource.FIGCAPTION: "".join(caption.split()) in dom.figcaptions,
            CaptionSource.OG: url in dom.og_pictures,
        }
        if not is_there[details.source]:
            findings.extra(f"{details.source.value} {url} {caption!r}", where)


def _rule(image: DomImage) -> str | None:
    """Why we leave it out, if we do."""
    if not image.url:
        return "no address"
    if not image.url.startswith(("http://", "https://")):
        return "no http address"
    if len(image.url) > MAX_URL_CHARACTERS:
        return "address too long"
    reason = junk_reason(image.url, image.width, image.height, OPTIONS)
    return reason.value if reason else None


def _records(content: bytes) -> Iterator[tuple[OtherRecord, str]]:
    """With the content types of their blocks."""
    content, has_offsets = _readable_by_warcio(content)
    records = ArchiveIterator(io.BytesIO(content), no_record_parse=True)
    for record in records:
        block = record.raw_stream.read()
        offset = records.get_record_offset() if has_offsets else None  # which passes over what has not been read
        url = (record.rec_headers.get_header("WARC-Target-URI") or "").strip("<>")
        content_type = record.rec_headers.get_header("Content-Type") or ""
        yield OtherRecord(offset, record.rec_type, url, block), content_type


def _pages(sample: Sample, findings: Findings) -> Iterator[OtherPage]:
    for record, content_type in _records(sample.content):
        stream, status_line, encodings = io.BytesIO(record.block), "HTTP/1.1 200", {}
        if record.kind == "response":
            http = StatusAndHeadersParser([], verify=False).parse(stream)
            content_type = http.get_header("Content-Type") or ""
            status_line = f"{http.protocol} {http.statusline}"
            encodings = {name: (http.get_header(f"{name}-Encoding") or "").lower() for name in ("transfer", "content")}
        is_html = re.match(r"\s*(text/html|application/xhtml\+xml)\s*(;|$)", content_type, re.IGNORECASE)
        if record.kind not in ("response", "resource") or not is_html:
            continue
        if not status_line.startswith("HTTP/"):
            where = f"{sample.name} at {record.offset}, {record.url}"
            findings.missed("page", where, "a status line that begins with no HTTP/")
        elif re.search(r" 2\d\d\b", status_line):
            charset = re.search(r"charset\s*=\s*[\"']?([\w.:-]+)", content_type, re.IGNORECASE)
            yield OtherPage(record.offset, record.url, _unpacked(stream, **encodings), charset[1] if charset else None)


def _unpacked(stream: BinaryIO, transfer: str = "", content: str = "") -> bytes:
    if content not in ("br", "zstd"):
        reader = ChunkedDataReader if transfer == "chunked" else BufferedReader
        body: bytes = reader(stream, decomp_type=content or None).read()
        return body
    packed = (ChunkedDataReader(stream) if transfer == "chunked" else stream).read()
    if content == "br":
        return brotli.decompress(packed)
    return pyarrow.CompressedInputStream(pyarrow.BufferReader(packed), "zstd").read()


def _readable_by_warcio(content: bytes) -> tuple[bytes, bool]:
    """It reads no file that was gzipped as a whole; such a one is unpacked, and has no offsets."""
    try:
        for record in ArchiveIterator(io.BytesIO(content), no_record_parse=True):
            record.raw_stream.read()
    except ArchiveLoadFailed:
        return gzip.decompress(content), False
    return content, True


if __name__ == "__main__":
    main()
