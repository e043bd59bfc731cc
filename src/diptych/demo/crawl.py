"""Serve the demo's site on this machine, and crawl it into a WARC file."""

from __future__ import annotations

import re
import shutil
import threading
import urllib.robotparser
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urljoin, urlsplit

from diptych.demo.site import DemoSite
from diptych.files import flush

USER_AGENT = "diptych-demo"
MAX_CLICKS = 30
"""The largest distance from the first page, in links; it ends the crawl of a calendar that always has a next month."""
_LINK = re.compile(rb'<a\s[^>]*?href="([^"]+)"')


@contextmanager
def serve(site: DemoSite, port: int = 0) -> Iterator[str]:
    """Serve the site during the block, to this machine only, and yield its address; port 0 chooses a free port."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            answer = site.answer(urlsplit(self.path).path)
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.content_type)
            self.send_header("Content-Length", str(len(answer.body)))
            for name, value in answer.headers:
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer.body)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    Handler.wbufsize = -1  # send head and body in one packet
    ThreadingHTTPServer.daemon_threads = True
    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def serve_at_remembered_port(site: DemoSite, memory: Path, bound: Sequence[Path]) -> Iterator[str]:
    """Serve the site as `serve` does, at the port of an earlier call, so that addresses recorded then remain valid.

    memory: the file in which the port is stored.
    bound: files and folders that contain addresses; they are removed if another program now uses the port.
    """
    with ExitStack() as serving:
        try:
            address = serving.enter_context(serve(site, int(memory.read_text()) if memory.exists() else 0))
        except OSError:
            for path in bound:
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            address = serving.enter_context(serve(site))
        memory.write_text(str(urlsplit(address).port))
        yield address


def crawl(address: str, warc: Path) -> int:
    """Crawl the site breadth first into a WARC file, and return the number of pages.

    It obeys robots.txt and requests no page twice. The file is written completely or not at all.
    """
    # warcio records by patching http.client, so it must be imported before http.client is used.
    from warcio.capture_http import capture_http

    import http.client  # isort: skip

    partial = warc.with_name(f"{warc.name}.partial")
    warc.parent.mkdir(parents=True, exist_ok=True)
    host = urlsplit(address).netloc
    robots = urllib.robotparser.RobotFileParser()
    connection = http.client.HTTPConnection(host)

    def get(path: str) -> bytes:
        connection.request("GET", path, headers={"User-Agent": USER_AGENT})
        return connection.getresponse().read()

    robots.parse(get("/robots.txt").decode().splitlines())
    connection.close()
    waiting = deque([("/", 0)])
    seen = {"/"}
    num_pages = 0
    partial.unlink(missing_ok=True)
    with capture_http(str(partial)):
        connection = http.client.HTTPConnection(host)
        while waiting:
            path, clicks = waiting.popleft()
            page = get(path)
            num_pages += 1
            for link in _LINK.findall(page):
                url = urlsplit(urljoin(urljoin(address, path), link.decode()))
                is_new = url.netloc == host and url.path not in seen and clicks < MAX_CLICKS
                if is_new and robots.can_fetch(USER_AGENT, url.geturl()):
                    seen.add(url.path)
                    waiting.append((url.path, clicks + 1))
        connection.close()
    flush(partial)
    partial.replace(warc)
    flush(warc.parent)
    return num_pages
