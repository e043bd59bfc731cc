"""A local web: hosts that misbehave, each in its own way, and one that serves pictures.

    with HostileWeb({"red.jpg": data}) as web:
        Fetcher(FetchOptions(allow_networks=(web.network,)), resolve=web.resolve).fetch([(0, web.url("gzip_bomb"))])

Every behaviour has a host of its own (`gzip-bomb.test`), so that what is learnt about one does not affect another. All
are at 127.0.0.1, which the test allows; at 127.0.0.2, which it does not allow, connections are counted.
"""

from __future__ import annotations

import asyncio
import gzip
import socket
import ssl
import struct
import subprocess
import tempfile
import threading
import zlib
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from functools import cache, cached_property
from pathlib import Path

REFUSED_ADDRESS = "127.0.0.2"
LARGE_BYTES = 64 * 2**20
NOT_A_PICTURE = b"<html><body>Not a picture</body></html>"

Behaviour = Callable[["Exchange"], Awaitable[None]]
BEHAVIOURS: dict[str, Behaviour] = {}
TLS_HOSTS = ("tls_ok", "tls_self_signed", "tls_wrong_host", "tls_none")
ELSEWHERE = ("rebinding", "unknown_host", "dead")
"""Hosts without a behaviour: one at a refused address, one without an address, one where no program listens."""


def host_of(name: str) -> str:
    return name.replace("_", "-") + ".test"


class Exchange:
    """One request, and the connection to answer it on."""

    def __init__(self, web: HostileWeb, path: str, headers: dict[str, str], writer: asyncio.StreamWriter):
        self.web = web
        self.path = path
        self.headers = headers
        self.count = web.requests.count((headers.get("host", "").partition(":")[0], path))
        self._writer = writer

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def answer(self, body: bytes, *headers: str, status: str = "200 OK", type: str = "image/jpeg") -> None:
        lines = [f"HTTP/1.1 {status}", f"Content-Type: {type}", f"Content-Length: {len(body)}", *headers]
        await self.send("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body)

    async def start(self, *headers: str) -> None:
        """Send the head of an answer, without its length."""
        await self.send("\r\n".join(["HTTP/1.1 200 OK", "Content-Type: image/jpeg", *headers, "", ""]).encode())

    def close(self) -> None:
        self._writer.close()

    def reset(self) -> None:
        """Close with RST."""
        raw = self._writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()


def behaviour(function: Behaviour) -> Behaviour:
    BEHAVIOURS[function.__name__] = function
    return function


class HostileWeb:
    """Serves from a thread, as a context manager. `certificate` needs the `openssl` command."""

    network = "127.0.0.1/32"

    def __init__(self, pictures: dict[str, bytes] | None = None):
        self.pictures = pictures or {}
        self.requests: list[tuple[str, str]] = []
        """Host and path of all requests, those of robots.txt too."""
        self.headers: list[dict[str, str]] = []
        self.trouble: Callable[[str], str | None] = lambda path: None
        """The behaviour of the host `troubled` at a path; None: it serves a picture."""
        self.refused_visits = 0
        """Connections to the address that is not allowed."""
        self._folder = tempfile.TemporaryDirectory()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._dead = socket.socket()

    def __enter__(self) -> HostileWeb:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()
        self._dead.bind(("127.0.0.1", 0))  # without listening
        self.dead_port = self._dead.getsockname()[1]
        return self

    def __exit__(self, *exception: object) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._dead.close()
        self._folder.cleanup()

    def url(self, name: str, path: str = "/picture.jpg") -> str:
        """The URL of the host with this behaviour, or of the given picture with this name."""
        if name in self.pictures:
            name, path = "pictures", f"/{name}"
        if name == "dead":
            return f"http://{host_of(name)}:{self.dead_port}{path}"
        if name.startswith("tls_"):
            port = self.port if name == "tls_none" else self.tls_port
            return f"https://{host_of(name)}:{port}{path}"
        return f"http://{host_of(name)}:{self.port}{path}"

    @property
    def resolve(self) -> list[str]:
        """Entries for the fetcher's resolver, for every host."""
        entries = [f"{host_of(name)}:{self.port}:127.0.0.1" for name in [*BEHAVIOURS, "tls_none"]]
        entries += [f"{host_of(name)}:{self.tls_port}:127.0.0.1" for name in TLS_HOSTS]
        entries.append(f"{host_of('dead')}:{self.dead_port}:127.0.0.1")
        entries.append(f"{host_of('rebinding')}:{self.port}:{REFUSED_ADDRESS}")
        return entries

    @cached_property
    def certificate(self) -> Path:
        """A self-signed certificate for `tls_ok`, with its key in the same file."""
        path = Path(self._folder.name) / "certificate.pem"
        path.write_text(_make_certificate())
        return path

    def asked_for(self, name: str) -> list[str]:
        """The paths that were requested at this host."""
        return [path for host, path in self.requests if host == host_of(name)]

    async def _listen(self) -> None:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(self.certificate)
        plain = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port: int = plain.sockets[0].getsockname()[1]
        secure = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=tls)
        self.tls_port: int = secure.sockets[0].getsockname()[1]
        refused = await asyncio.start_server(self._count_visit, REFUSED_ADDRESS, self.port)
        self._servers = [plain, secure, refused]

    async def _end(self) -> None:
        for server in self._servers:
            server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _count_visit(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.refused_visits += 1
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecret")
        writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while not writer.is_closing():
                first = await reader.readexactly(1)
                if first == b"\x16":  # a client that starts TLS at the port without it
                    writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                    break
                head = (first + await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                lines = [line.partition(":") for line in head[1:] if line]
                headers = {name.lower(): value.strip() for name, _, value in lines}
                await self._answer(head[0].split(" ")[1], headers, writer)
        except (asyncio.IncompleteReadError, OSError, asyncio.CancelledError):
            pass  # the client left, or the web is being closed
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _answer(self, path: str, headers: dict[str, str], writer: asyncio.StreamWriter) -> None:
        host = headers.get("host", "").partition(":")[0]
        self.requests.append((host, path))
        self.headers.append(headers)
        name = host.removesuffix(".test").replace("-", "_")
        exchange = Exchange(self, path, headers, writer)
        if path == "/robots.txt" and not name.startswith("robots_"):
            await exchange.answer(b"", status="404 Not Found")
        elif name in BEHAVIOURS:
            await BEHAVIOURS[name](exchange)
        else:
            await exchange.answer(b"picture of " + host.encode())


@behaviour
async def pictures(exchange: Exchange) -> None:
    """Serves the given pictures."""
    body = exchange.web.pictures.get(exchange.path[1:])
    await (exchange.answer(b"", status="404 Not Found") if body is None else exchange.answer(body))


@behaviour
async def troubled(exchange: Exchange) -> None:
    """Serves pictures, unless `HostileWeb.trouble` names another behaviour."""
    name = exchange.web.trouble(exchange.path)
    await BEHAVIOURS[name or ("pictures" if exchange.path[1:] in exchange.web.pictures else "ok")](exchange)


@behaviour
async def unavailable(exchange: Exchange) -> None:
    await exchange.answer(b"", status="503 Service Unavailable")


@behaviour
async def ok(exchange: Exchange) -> None:
    await exchange.answer(b"picture at " + exchange.path.encode())


@behaviour
async def html(exchange: Exchange) -> None:
    """A page with the name and the type of a picture."""
    await exchange.answer(NOT_A_PICTURE)


@behaviour
async def polyglot(exchange: Exchange) -> None:
    """A GIF by its first bytes, but also a script."""
    await exchange.answer(b"GIF89a/*" + NOT_A_PICTURE + b"*/=1;alert(1)", type="image/gif")


@behaviour
async def pixel_bomb(exchange: Exchange) -> None:
    """A PNG of 900 megapixels in 110 KB."""
    await exchange.answer(await asyncio.to_thread(_black_png, 30_000), type="image/png")


@behaviour
async def not_found(exchange: Exchange) -> None:
    await exchange.answer(b"no such picture", status="404 Not Found")


@behaviour
async def endless_not_found(exchange: Exchange) -> None:
    await exchange.send(b"HTTP/1.1 404 Not Found\r\n\r\n")
    while True:
        await exchange.send(b"x" * 65536)


@behaviour
async def forbidden_once(exchange: Exchange) -> None:
    """An error at the first request only."""
    await (exchange.answer(b"", status="500 Oops") if exchange.count < 2 else exchange.answer(b"picture"))


@behaviour
async def partial(exchange: Exchange) -> None:
    await exchange.answer(b"half", "Content-Range: bytes 0-3/8", status="206 Partial Content")


@behaviour
async def empty(exchange: Exchange) -> None:
    await exchange.answer(b"")


@behaviour
async def redirect(exchange: Exchange) -> None:
    await exchange.answer(b"moved", f"Location: {exchange.web.url('ok')}", status="302 Found")


@behaviour
async def relative_redirect(exchange: Exchange) -> None:
    if exchange.path == "/a/picture.jpg":
        await exchange.answer(b"", "Location: ../b/caf\xe9 1.jpg#top", status="301 Moved Permanently")
    else:
        await exchange.answer(exchange.path.encode())


@behaviour
async def redirect_to_loopback(exchange: Exchange) -> None:
    await exchange.answer(b"", f"Location: http://{REFUSED_ADDRESS}:{exchange.web.port}/secret", status="302 Found")


@behaviour
async def redirect_to_decimal(exchange: Exchange) -> None:
    await exchange.answer(b"", f"Location: http://2130706434:{exchange.web.port}/secret", status="307 Elsewhere")


@behaviour
async def redirect_to_file(exchange: Exchange) -> None:
    await exchange.answer(b"", "Location: file:///etc/hostname", status="302 Found")


@behaviour
async def endless_redirect(exchange: Exchange) -> None:
    await exchange.answer(b"", f"Location: {exchange.path}x", status="302 Found")


@behaviour
async def slow_headers(exchange: Exchange) -> None:
    await exchange.send(b"HTTP/1.1 200 OK\r\n")
    while True:
        await exchange.send(b"X-Slow: 1\r\n")
        await asyncio.sleep(0.1)


@behaviour
async def slow_body(exchange: Exchange) -> None:
    await exchange.start("Content-Length: 1000000")
    while True:
        await exchange.send(b"x")
        await asyncio.sleep(0.05)


@behaviour
async def slow_chunks(exchange: Exchange) -> None:
    await exchange.start("Transfer-Encoding: chunked")
    while True:
        await exchange.send(b"1\r\nx\r\n")
        await asyncio.sleep(0.05)


@behaviour
async def steady_but_long(exchange: Exchange) -> None:
    """Sends fast enough, but without end."""
    await exchange.start()
    while True:
        await exchange.send(b"x" * 1000)
        await asyncio.sleep(0.02)


@behaviour
async def silent(exchange: Exchange) -> None:
    await asyncio.sleep(3600)


@behaviour
async def giant_header(exchange: Exchange) -> None:
    await exchange.send(b"HTTP/1.1 200 OK\r\nX-Giant: ")
    while True:
        await exchange.send(b"x" * 65536)


@behaviour
async def endless_headers(exchange: Exchange) -> None:
    await exchange.send(b"HTTP/1.1 200 OK\r\n")
    while True:
        await exchange.send(b"X-Many: 1234567890\r\n" * 1000)


@behaviour
async def endless_hints(exchange: Exchange) -> None:
    while True:
        await exchange.send(b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n" * 100)


@behaviour
async def hints(exchange: Exchange) -> None:
    """An interim answer whose headers are not those of the picture."""
    await exchange.send(b"HTTP/1.1 103 Early Hints\r\nX-Robots-Tag: noai\r\n\r\n")
    await exchange.answer(b"picture")


@behaviour
async def other_protocol(exchange: Exchange) -> None:
    """Switches to a protocol that the client did not ask for."""
    await exchange.send(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: other\r\n\r\nother words")
    exchange.close()


@behaviour
async def odd_encoding(exchange: Exchange) -> None:
    """Headers that an object store repeats because an upload had them."""
    await exchange.answer(b"picture", "Content-Encoding: aws-chunked", "Content-Encoding: utf-8")


@behaviour
async def opted_out_of_all(exchange: Exchange) -> None:
    await exchange.answer(b"picture", "X-Robots-Tag: otherbot: all", "X-Robots-Tag: NONE")


@behaviour
async def reserved(exchange: Exchange) -> None:
    await exchange.answer(b"picture", "TDM-Reservation: 1", "TDM-Policy: https://reserved.test/policy.json")


@behaviour
async def not_reserved(exchange: Exchange) -> None:
    await exchange.answer(b"picture", "tdm-reservation: 0")


@behaviour
async def gzip_bomb(exchange: Exchange) -> None:
    await exchange.answer(await asyncio.to_thread(_packed_zeros), "Content-Encoding: gzip")


@behaviour
async def gzipped(exchange: Exchange) -> None:
    """Compresses although the client did not ask for it."""
    await exchange.answer(gzip.compress(b"picture" * 100), "Content-Encoding: gzip")


@behaviour
async def truncated_gzip(exchange: Exchange) -> None:
    await exchange.answer(gzip.compress(b"picture" * 100)[:-12], "Content-Encoding: gzip")


@behaviour
async def false_gzip(exchange: Exchange) -> None:
    await exchange.answer(b"picture", "Content-Encoding: gzip")


@behaviour
async def brotli(exchange: Exchange) -> None:
    await exchange.answer(b"\x0b\x02\x80picture\x03", "Content-Encoding: br")


@behaviour
async def large(exchange: Exchange) -> None:
    """Announces its length, and sends almost nothing."""
    await exchange.start(f"Content-Length: {LARGE_BYTES}")
    await exchange.send(b"x")
    await asyncio.sleep(3600)


@behaviour
async def endless_body(exchange: Exchange) -> None:
    await exchange.start()
    while True:
        await exchange.send(b"x" * 65536)


@behaviour
async def endless_chunks(exchange: Exchange) -> None:
    await exchange.start("Transfer-Encoding: chunked")
    while True:
        await exchange.send((b"%x\r\n" % 8192 + b"x" * 8192 + b"\r\n") * 8)


@behaviour
async def truncated(exchange: Exchange) -> None:
    await exchange.start("Content-Length: 1000", "Connection: close")
    await exchange.send(b"x" * 500)
    exchange.close()


@behaviour
async def truncated_chunks(exchange: Exchange) -> None:
    await exchange.start("Transfer-Encoding: chunked", "Connection: close")
    await exchange.send(b"3e8\r\n" + b"x" * 500)
    exchange.close()


@behaviour
async def truncated_once(exchange: Exchange) -> None:
    await (truncated(exchange) if exchange.count < 2 else exchange.answer(b"picture"))


@behaviour
async def reset(exchange: Exchange) -> None:
    """Resets the connection in the middle of a body."""
    await exchange.start("Content-Length: 1000")
    await exchange.send(b"x" * 500)
    await asyncio.sleep(0.05)
    exchange.reset()


@behaviour
async def reset_at_once(exchange: Exchange) -> None:
    """Resets the connection before it answers."""
    exchange.reset()


@behaviour
async def no_answer(exchange: Exchange) -> None:
    exchange.close()


@behaviour
async def not_http(exchange: Exchange) -> None:
    await exchange.send(b"220 mail.example.test ESMTP\r\n")
    exchange.close()


@behaviour
async def lying_length(exchange: Exchange) -> None:
    await exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\npicture")
    exchange.close()


@behaviour
async def retry_after(exchange: Exchange) -> None:
    if exchange.web.asked_for("retry_after") == ["/robots.txt", exchange.path]:
        await exchange.answer(b"", "Retry-After: 1", status="429 Too Many Requests")
    else:
        await exchange.answer(b"picture")


@behaviour
async def retry_after_date(exchange: Exchange) -> None:
    if exchange.count == 1:
        # The field has whole seconds: two from now are at least one.
        date = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=2), usegmt=True)
        await exchange.answer(b"", f"Retry-After: {date}", status="503 Service Unavailable")
    else:
        await exchange.answer(b"picture")


@behaviour
async def retry_always(exchange: Exchange) -> None:
    """Asks for a pause, then redirects to a path where it asks for a pause again."""
    if exchange.count % 2:
        await exchange.answer(b"", "Retry-After: 1", status="429 Too Many Requests")
    else:
        await exchange.answer(b"", f"Location: {exchange.path}x", status="302 Found")


@behaviour
async def retry_next_hour(exchange: Exchange) -> None:
    await exchange.answer(b"", "Retry-After: 3600", status="429 Too Many Requests")


@behaviour
async def opted_out(exchange: Exchange) -> None:
    await exchange.answer(b"picture", "X-Robots-Tag: otherbot: nofollow", "X-Robots-Tag: max-snippet:5, noai")


@behaviour
async def others_opted_out(exchange: Exchange) -> None:
    await exchange.answer(b"picture", "X-Robots-Tag: otherbot: noai, noindex")


@behaviour
async def robots_disallow(exchange: Exchange) -> None:
    if exchange.path == "/robots.txt":
        await exchange.answer(b"User-agent: *\nDisallow: /private/\n", type="text/plain")
    else:
        await exchange.answer(b"picture")


@behaviour
async def robots_broken(exchange: Exchange) -> None:
    await (exchange.answer(b"", status="500 Oops") if exchange.path == "/robots.txt" else exchange.answer(b"picture"))


@behaviour
async def robots_busy(exchange: Exchange) -> None:
    if exchange.path == "/robots.txt":
        await exchange.answer(b"", "Retry-After: 3600", status="429 Too Many Requests")
    else:
        await exchange.answer(b"picture")


@behaviour
async def robots_endless(exchange: Exchange) -> None:
    """Sends rules first, then rubbish without end."""
    if exchange.path != "/robots.txt":
        await exchange.answer(b"picture")
        return
    await exchange.start()
    await exchange.send(b"User-agent: *\nDisallow: /private/\n")
    while True:
        await exchange.send(b"# rubbish\n" * 6000)


@behaviour
async def robots_gone(exchange: Exchange) -> None:
    """Has a robots.txt at first, and none later."""
    if exchange.path == "/robots.txt":
        status = "200 OK" if exchange.count == 1 else "404 Not Found"
        await exchange.answer(b"User-agent: *\nDisallow: /private/\n", status=status, type="text/plain")
    else:
        await exchange.answer(b"picture")


@behaviour
async def robots_moved(exchange: Exchange) -> None:
    """Redirects its robots.txt to another host."""
    if exchange.path == "/robots.txt":
        location = exchange.web.url("robots_disallow", "/robots.txt")
        await exchange.answer(b"", f"Location: {location}", status="301 Moved Permanently")
    else:
        await exchange.answer(b"picture")


@cache
def _make_certificate() -> str:
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=test"
    names = ["-addext", f"subjectAltName=DNS:{host_of('tls_ok')}"]
    words = [*command.split(), *names, "-keyout", "-"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


@cache
def _packed_zeros() -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    zeros = bytes(2**20)
    return b"".join(packer.compress(zeros) for _ in range(LARGE_BYTES // 2**20)) + packer.flush()


@cache
def _black_png(side: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    row = bytes(1 + side // 8)
    pixels = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
