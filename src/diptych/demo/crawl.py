"""A web server for the demo's site on this machine, and a crawler that records its pages as a WARC file."""

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

from diptych.demo.site import Site
from diptych.files import flush

USER_AGENT = "diptych-demo"
MAX_CLICKS = 30
"""From the first page; where a calendar has a next month for ever, this is where one turns back."""
_LINK = re.compile(rb'<a\s[^>]*?href="([^"]+)"')


@contextmanager
def serve(site: Site, port: int = 0) -> Iterator[str]:
    """The site's address while the block runs: on this machine alone, at a free port where none is given."""

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

    Handler.wbufsize = -1  # one packet for head and body
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
def serve_at_remembered_port(site: Site, memory: Path, bound: Sequence[Path]) -> Iterator[str]:
    """As `serve`, where an earlier call served it, so that addresses written down then are right still.

    memory: the file that holds the port. bound: what was made from addresses; removed where another program has taken
    the port meanwhile.
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
    """Record the site's pages, followed breadth first, in a WARC file; the number of pages.

    robots.txt is obeyed and no page is asked for twice. The file appears whole or not at all.
    """
    # Recording works by standing between http.client and whoever uses it: first warcio, then the user.
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
