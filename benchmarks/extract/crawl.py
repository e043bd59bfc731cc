"""Drawn pages as a crawl stores them: a WARC, and the WAT of it in the form of Common Crawl's."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import IO, Any

from benchmarks.extract.pages import DrawnPage

DATE = "2024-05-18T10:11:12Z"
HEADERS = {
    "Date": "Sat, 18 May 2024 10:11:12 GMT",
    "Server": "nginx",
    "Cache-Control": "max-age=600",
    "Vary": "Accept-Encoding",
    "X-Crawler-Content-Encoding": "gzip",
    "X-Frame-Options": "SAMEORIGIN",
    "Strict-Transport-Security": "max-age=31536000; includeSubDomains",
}


def write_warc(pages: list[DrawnPage], path: Path) -> int:
    """How many bytes of HTML it holds."""
    num_bytes = 0
    with open(path, "wb") as file:
        for page in pages:
            body = page.html()
            charset = f"; charset={page.charset}" if page.charset == "utf-8" else ""
            headers = {**HEADERS, "Content-Type": f"text/html{charset}", "Content-Length": str(len(body))}
            lines = "".join(f"{name}: {text}\r\n" for name, text in headers.items())
            _write(file, page.url, "response", "application/http; msgtype=response",
                   f"HTTP/1.1 200 OK\r\n{lines}\r\n".encode() + body)  # fmt: skip
            num_bytes += len(body)
    return num_bytes


def write_wat(pages: list[DrawnPage], path: Path) -> int:
    """How many bytes it holds without gzip; a page has three records, one of which has its links."""
    inflated = io.BytesIO()
    with open(path, "wb") as file:
        for page in pages:
            for kind, payload in _payloads(page):
                content = _json(page, kind, payload)
                inflated.write(_write(file, page.url, "metadata", "application/json", content))
    return inflated.tell()


def _payloads(page: DrawnPage) -> list[tuple[str, dict[str, Any]]]:
    length, digest = "80123", "sha1:QHUVRBXA4IWWOR4LCRWAKHVJNLFDGVOO"
    entity = {
        "Headers-Length": "512",
        "Entity-Length": length,
        "Entity-Trailing-Slop-Length": "0",
        "Entity-Digest": digest,
    }
    request = {
        "Request-Message": {"Method": "GET", "Path": "/articles/index.html", "Version": "HTTP/1.1"},
        "Headers": {"User-Agent": "CCBot/2.0 (https://commoncrawl.org/faq/)", "Accept-Encoding": "br,gzip",
                    "Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
                    "Accept-Language": "en-US,en;q=0.5", "Host": "www.site.example", "Connection": "Keep-Alive"},
        **entity,
    }  # fmt: skip
    response = {
        "Response-Message": {"Version": "HTTP/1.1", "Status": "200", "Reason": "OK"},
        "Headers": {**HEADERS, "Content-Type": "text/html; charset=UTF-8"},
        "HTML-Metadata": page.html_metadata(),
        **entity,
    }
    added = {"fetchTimeMs": "133", "charset-detected": "UTF-8", "languages-cld2": '{"reliable":true,"text-bytes":3221}'}
    fetched = {"Metadata-Records": [{"Name": name, "Value": text} for name, text in added.items()]}
    return [
        ("request", {"Actual-Content-Type": "application/http; msgtype=request", "HTTP-Request-Metadata": request}),
        ("response", {"Actual-Content-Type": "application/http; msgtype=response", "HTTP-Response-Metadata": response}),
        ("metadata", {"Actual-Content-Type": "application/metadata-fields", "WARC-Metadata-Metadata": fetched}),
    ]


def _json(page: DrawnPage, kind: str, payload: dict[str, Any]) -> bytes:
    gzip_metadata = {"Deflate-Length": "20123", "Header-Length": "10", "Footer-Length": "8", "Inflated-CRC": "-1234567",
                     "Inflated-Length": "80999"}  # fmt: skip
    record = {
        "Container": {"Filename": "CC-MAIN-20240518091226-20240518121226-00000.warc.gz", "Compressed": True,
                      "Offset": "1234567", "Gzip-Metadata": gzip_metadata},
        "Envelope": {
            "Format": "WARC",
            "WARC-Header-Length": "612",
            "WARC-Header-Metadata": {
                "WARC-Type": kind, "WARC-Date": DATE,
                "WARC-Record-ID": "<urn:uuid:7b3c21e6-7a0f-4b4f-8d1e-3c1f2a9b0c1d>",
                "Content-Length": "80612", "Content-Type": f"application/http; msgtype={kind}",
                "WARC-Warcinfo-ID": "<urn:uuid:2c9d8e7f-1a2b-4c3d-9e8f-0a1b2c3d4e5f>", "WARC-IP-Address": "192.0.2.7",
                "WARC-Target-URI": page.url, "WARC-Payload-Digest": "sha1:QHUVRBXA4IWWOR4LCRWAKHVJNLFDGVOO"},
            "Payload-Metadata": {**payload, "Trailing-Slop-Length": "4", "Actual-Content-Length": "80612",
                                 "Block-Digest": "sha1:T6UDJYPJ4QOPZ6PSAYNQXHH3UGMPN5OK"},
        },
    }  # fmt: skip
    return json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode()


def _write(file: IO[bytes], url: str, kind: str, content_type: str, block: bytes) -> bytes:
    header = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {url}\r\nWARC-Date: {DATE}\r\n"
        f"WARC-Record-ID: <urn:uuid:0d1c2b3a-4f5e-4d6c-8b7a-9f8e7d6c5b4a>\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(block)}\r\n\r\n"
    )
    record = header.encode() + block + b"\r\n\r\n"
    file.write(gzip.compress(record, 6, mtime=0))
    return record
