"""A real S3 server on loopback, and a proxy before it that counts requests and spoils answers."""

from __future__ import annotations

import http.client
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.commands import free_port

BUCKET = "bucket"
STORE_SETTINGS = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_MAX_ATTEMPTS": "1",
}


@contextmanager
def s3_server() -> Iterator[int]:
    """Run an S3 server with one bucket during the block; the value is its port."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while _put(port, f"/{BUCKET}", b"") is None:
            assert time.monotonic() < deadline and server.poll() is None
            time.sleep(0.05)
        yield port
    finally:
        server.kill()
        server.wait()


def upload(port: int, folder: Path, name: str) -> None:
    """Put all files of a folder into the bucket, below `name`."""
    for path in folder.rglob("*"):
        if path.is_file():
            put(port, f"{name}/{path.relative_to(folder)}", path.read_bytes())


def put(port: int, name: str, data: bytes) -> None:
    """Put a new object into the bucket."""
    assert _put(port, f"/{BUCKET}/{name}", data) == 200


def _put(port: int, path: str, data: bytes) -> int | None:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    try:
        connection.request("PUT", path, data)
        return connection.getresponse().status
    except ConnectionRefusedError:
        return None
    finally:
        connection.close()


Fault = Callable[[BaseHTTPRequestHandler, bytes], None]


class Proxy:
    """Passes requests on; each GET of a tar is answered by the next of `faults`, or as it should be for None."""

    def __init__(self, port: int) -> None:
        self.behind = port
        """The port of the server."""
        self.faults: list[Fault | None] = []
        self.delay_seconds = 0.0
        """How long the answer to a request for a tar takes."""
        self.tars: list[tuple[str, int]] = []
        """Name and first byte of each GET of a tar."""
        self.others: list[str] = []
        """Paths of all other GETs."""
        lock = threading.Lock()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                upstream = http.client.HTTPConnection("127.0.0.1", port)
                upstream.request(self.command, self.path, headers=dict(self.headers))
                answer = upstream.getresponse()
                body = answer.read()
                upstream.close()
                fault = None
                with lock:
                    if self.path.endswith(".tar") and self.command == "GET":
                        first = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0]
                        proxy.tars.append((os.path.basename(self.path), int(first)))
                        fault = proxy.faults.pop(0) if proxy.faults else None
                    elif self.command == "GET":
                        proxy.others.append(self.path)
                if self.path.endswith(".tar"):
                    time.sleep(proxy.delay_seconds)
                if fault is not None:
                    self.close_connection = True
                    fault(self, body)
                    return
                self.send_response(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in ("connection", "transfer-encoding", "content-length", "date", "server"):
                        self.send_header(name, value)
                length = answer.getheader("Content-Length", "0") if self.command == "HEAD" else str(len(body))
                self.send_header("Content-Length", length)
                self.end_headers()
                self.wfile.write(body)

            do_HEAD = do_GET

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                """A client that was killed."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def forget(self) -> None:
        """Forget what was asked before, and what was to be answered."""
        for counted in (self.faults, self.tars, self.others):
            counted.clear()
        self.delay_seconds = 0.0

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def answer(handler: BaseHTTPRequestHandler, body: bytes) -> None:
    """Answer as the server did."""
    handler.send_response(206)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def busy(handler: BaseHTTPRequestHandler, _: bytes) -> None:
    handler.send_response(503)
    handler.send_header("Content-Length", "0")
    handler.end_headers()


def reset(handler: BaseHTTPRequestHandler, _: bytes) -> None:
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()


def truncate(handler: BaseHTTPRequestHandler, body: bytes) -> None:
    handler.send_response(206)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body[: len(body) // 2])
    handler.wfile.flush()


def drip(handler: BaseHTTPRequestHandler, body: bytes) -> None:
    handler.send_response(206)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    try:
        for number in range(100):
            handler.wfile.write(body[number : number + 1])
            time.sleep(0.1)
    except OSError:
        pass


def other_bytes(handler: BaseHTTPRequestHandler, body: bytes) -> None:
    answer(handler, bytes(len(body)))
