"""Other programs record a local site that answers in many ways; `extract` reads their files."""

import gzip
import http.server
import shutil
import subprocess
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

import brotli
import pytest
from warcio.capture_http import capture_http

from diptych_shards.extract.extract import extract_file
from diptych_shards.extract.options import ExtractOptions

import http.client  # isort: skip  # after warcio, which replaces parts of it
import pyarrow.parquet as parquet  # isort: skip


def page(caption: str, charset: str = "utf-8", head: str = "") -> bytes:
    return f"<html><head>{head}</head><body>{'<p>text</p>' * 999}<img src=x.jpg alt='{caption}'>".encode(charset)


ANSWERS: dict[str, tuple[int, dict[str, str], bytes]] = {
    "/": (301, {"Location": "/en/"}, page("moved")),
    "/en/": (200, {"Content-Encoding": "gzip"}, gzip.compress(page("Café by the sea"))),
    "/deflate/": (200, {"Content-Encoding": "deflate"}, zlib.compress(page("deflated"))),
    "/br/": (200, {"Content-Encoding": "br"}, brotli.compress(page("brotli"))),
    "/chunked/": (200, {"Transfer-Encoding": "chunked"}, page("in chunks")),
    "/both/": (200, {"Transfer-Encoding": "chunked", "Content-Encoding": "gzip"}, gzip.compress(page("both"))),
    "/ja/": (200, {"Content-Type": "text/html; charset=EUC-JP"}, page("日本の庭園", "euc_jp")),
    "/ru/": (200, {}, page("Красная площадь", "cp1251", "<meta charset=windows-1251>")),
    "/until-closed/": (200, {"Connection": "close"}, page("no length")),
    "/nowhere/": (404, {}, page("not found")),
    "/data/": (200, {"Content-Type": "application/json"}, page("no page")),
    "/empty/": (204, {}, b""),
}
FOUND = {
    "/en/": "Café by the sea",
    "/deflate/": "deflated",
    "/br/": "brotli",
    "/chunked/": "in chunks",
    "/both/": "both",
    "/ja/": "日本の庭園",
    "/ru/": "Красная площадь",
    "/until-closed/": "no length",
}


class Site(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        status, headers, body = ANSWERS[self.path]
        self.send_response(status)
        for name, text in {"Content-Type": "text/html", **headers}.items():
            self.send_header(name, text)
        if "Transfer-Encoding" in headers:
            self.end_headers()
            for start in range(0, len(body), 1000):
                part = body[start : start + 1000]
                self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part))
            self.wfile.write(b"0\r\n\r\n")
            return
        if "Connection" not in headers and status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def host() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def record_with_warcio(host: str, folder: Path) -> Path:
    warc = folder / "site.warc.gz"
    with capture_http(str(warc)):
        for path in ANSWERS:
            connection = http.client.HTTPConnection(host)
            connection.request("GET", path)
            connection.getresponse().read()
            connection.close()
    return warc


def record_with_wget(host: str, folder: Path) -> Path:
    urls = [f"http://{host}{path}" for path in ANSWERS]
    options = ["--quiet", "--no-config", "--tries=1", "--delete-after", f"--directory-prefix={folder / 'got'}"]
    subprocess.run(["wget", *options, f"--warc-file={folder / 'site'}", *urls], check=False)
    return folder / "site.warc.gz"


@pytest.mark.parametrize("record", [record_with_warcio, record_with_wget])
def test_what_another_program_recorded_is_read(record, host, tmp_path):
    if record is record_with_wget and not shutil.which("wget"):
        pytest.skip("wget is not installed")
    out = tmp_path / "out"
    (out / "_index").mkdir(parents=True)
    report = extract_file(str(record(host, tmp_path)), out, ExtractOptions())
    rows = parquet.read_table(out / "site.warc.gz.parquet").to_pylist()
    found = {(row["page_url"], row["url"], row["caption"]) for row in rows}
    assert found == {(f"http://{host}{path}", f"http://{host}{path}x.jpg", text) for path, text in FOUND.items()}
    assert report.records["answered with an error or a redirect"] == 2
    assert "broken record" not in report.records
