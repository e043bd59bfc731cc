"""Recorded pages out of the source distributions of other packages, which pip downloads."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

ROOT = Path(__file__).parents[2]
REQUIREMENTS = ROOT / "benchmarks" / "peers" / "real_crawls.txt"
DOWNLOADS = ROOT / ".venv-peers" / "real_crawls"

_CRAWL = re.compile(r"\.wa(?:rc|t)(?:\.gz)?(?:\.bad)?$")


class Sample(NamedTuple):
    name: str
    content: bytes
    """Of a WARC file."""
    is_recorded: bool
    """As a WARC; otherwise pages that were saved, which are written as one here."""


def ensure_downloaded() -> None:
    """Download them, unless what is there came from the same requirements."""
    stamp = DOWNLOADS / "downloaded-from.txt"
    if stamp.exists() and stamp.read_bytes() == REQUIREMENTS.read_bytes():
        return
    print(f"downloading into {DOWNLOADS}", file=sys.stderr)
    shutil.rmtree(DOWNLOADS, ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, "--dest", DOWNLOADS, "--requirement", REQUIREMENTS], check=True, stdout=sys.stderr)
    shutil.copyfile(REQUIREMENTS, stamp)


def samples() -> Iterator[Sample]:
    for path in sorted(DOWNLOADS.glob("*.tar.gz")):
        saved: dict[str, bytes] = {}
        with tarfile.open(path) as archive:
            for member in archive:
                file = archive.extractfile(member)
                if file is None:
                    continue
                if "/tests/cache/" in member.name and member.name.endswith(".html"):
                    saved[Path(member.name).name] = file.read()
                else:
                    yield from _crawls_in(member.name, file.read())
        if saved:
            yield Sample(path.name, _as_warc(saved), False)


def _crawls_in(name: str, content: bytes) -> Iterator[Sample]:
    if _CRAWL.search(name):
        yield Sample(name, content, True)
    elif name.endswith(".wacz"):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for inside in archive.namelist():
                if _CRAWL.search(inside):
                    yield Sample(f"{name}/{inside}", archive.read(inside), True)
    elif name.endswith(".jsonl") and "/mock_responses/" in name:
        for number, line in enumerate(content.splitlines()):
            text = json.loads(line).get("response_text", "")
            if text.startswith("H4sI"):  # the beginning of gzip in base64
                yield Sample(f"{name}:{number + 1}", base64.b64decode(text), True)


def _as_warc(pages: dict[str, bytes]) -> bytes:
    written = io.BytesIO()
    writer = WARCWriter(written, gzip=True)
    for name, html in pages.items():
        headers = StatusAndHeaders("200 OK", [("Content-Type", "text/html")], protocol="HTTP/1.1")
        record = writer.create_warc_record(
            f"https://saved.example/{name}", "response", payload=io.BytesIO(html), http_headers=headers
        )
        writer.write_record(record)
    return written.getvalue()
