"""Small crawls for tests."""

from __future__ import annotations

import gzip
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

from diptych_shards.extract.extract import pages_of
from diptych_shards.extract.options import ExtractOptions
from diptych_shards.extract.page import read_page
from diptych_shards.extract.pairs import Page
from diptych_shards.extract.results import FileReport

PAGE_URL = "https://a.example/dir/page.html"


def record(block: bytes, kind: str = "response", url: str = PAGE_URL, content_type: str = "application/http") -> bytes:
    header = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {url}\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(block)}\r\n\r\n"
    )
    return header.encode() + block + b"\r\n\r\n"


def answer(html: bytes | str, headers: str = "Content-Type: text/html; charset=utf-8", status: str = "200 OK") -> bytes:
    body = html.encode() if isinstance(html, str) else html
    return f"HTTP/1.1 {status}\r\n{headers}\r\n\r\n".encode() + body


def page_record(html: bytes | str, **more: str) -> bytes:
    return record(answer(html, **more))


def img(name: str) -> str:
    return f'<img src="/{name}.jpg" alt="a picture of {name}">'


def warc_gz(*records: bytes) -> bytes:
    return b"".join(gzip.compress(record, mtime=0) for record in records)


def wat_record(metadata: dict[str, Any], url: str = PAGE_URL, **container: Any) -> bytes:
    content = {
        "Container": {"Filename": "crawl.warc.gz", "Offset": "77", **container},
        "Envelope": {
            "WARC-Header-Metadata": {"WARC-Target-URI": url},
            "Payload-Metadata": {"HTTP-Response-Metadata": {"HTML-Metadata": metadata}},
        },
    }
    block = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    return record(block, "metadata", url, "application/json")


def extracted(content: bytes, **options: Any) -> tuple[list[tuple[str, str]], FileReport]:
    """The pairs of a file by url and caption, and its report."""
    report = FileReport()
    pages = pages_of(io.BytesIO(content), ExtractOptions(**options), report)
    return [pair for found in pages for pair in found.page.pairs], report


def page(html: str, url: str = PAGE_URL, **options: Any) -> Page:
    return read_page(html.encode(), url, None, ExtractOptions(**options), Counter())


def pairs(html: str, url: str = PAGE_URL, **options: Any) -> list[tuple[str, str]]:
    return list(page(html, url, **options).pairs)


def dropped(html: str, **options: Any) -> dict[str, int]:
    counts: Counter = Counter()
    read_page(html.encode(), PAGE_URL, None, ExtractOptions(**options), counts)
    return {reason.value: count for reason, count in counts.items()}


def write(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path
