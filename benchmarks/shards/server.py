"""Serve a web on loopback addresses in a process of its own: `with Web(pictures, folder) as web`.

Every host has an address in 127.0.0.0/8; all use one port, and a second one for TLS. The third part of the address
decides how the host behaves. Answers are prepared in advance and written in one piece; connections are kept.
"""

from __future__ import annotations

import asyncio
import enum
import multiprocessing
import random
import socket
import ssl
import subprocess
from multiprocessing.connection import Connection
from pathlib import Path

import certifi
from benchmarks.shards.pictures import Picture

HOSTS_OF_A_KIND = 100
TYPES = {"jpg": b"image/jpeg", "png": b"image/png", "webp": b"image/webp"}
SLOW_START_SECONDS = 1.0, 3.0
SLOW_BODY_SECONDS = 0.5, 2.0
SLOW_BODY_PIECES = 8


class Host(enum.IntEnum):
    """How a host behaves; the third part of its address."""

    GOOD = 1
    SLOW = 2
    """Sends the first byte after some seconds, then the body in pieces."""
    SILENT = 3
    """Accepts the connection and sends nothing."""
    REFUSING = 4
    """Nothing listens."""
    GONE = 5
    """404."""
    BROKEN = 6
    """500."""
    RESETTING = 7
    """Resets the connection in the middle of the body."""
    PARKED = 8
    """200, with a page of HTML."""


class Web:
    """The server process, and the addresses of what it serves."""

    def __init__(self, pictures: list[Picture], folder: Path, *, num_hosts: int):
        """num_hosts: the number of good hosts; folder: for the certificates."""
        self._num_hosts = num_hosts
        self._suffixes = [picture.suffix for picture in pictures]
        self.ca_file = folder / "authorities.pem"
        """Certificates of the usual authorities and of this web."""
        certificate = _make_certificate(folder)
        self.ca_file.write_bytes(Path(certifi.where()).read_bytes() + certificate.read_bytes())
        ours, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        self._process = context.Process(target=_serve, args=(theirs, pictures, num_hosts, certificate), daemon=True)
        self._process.start()
        theirs.close()
        self._connection = ours
        self._port, self._tls_port = ours.recv()

    def __enter__(self) -> Web:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.join()
        self._connection.close()

    def url(self, row: int, kind: Host = Host.GOOD, *, tls: bool = False) -> str:
        """The URL of a row's picture, which is `picture_number(row)`; every row has a different one."""
        number = self.picture_number(row)
        scheme, port = ("https", self._tls_port) if tls else ("http", self._port)
        host = row % (self._num_hosts if kind is Host.GOOD else HOSTS_OF_A_KIND)
        return f"{scheme}://127.0.{kind:d}.{host + 1}:{port}/{number}.{self._suffixes[number]}?row={row}"

    def picture_number(self, row: int) -> int:
        # Hosts are numbered by row too; the factor keeps a host from serving the same few pictures again and again.
        return (row * 7919) % len(self._suffixes)


class _Answers:
    """Prepared answers."""

    def __init__(self, pictures: list[Picture]):
        self.pictures = [_answer(b"200 OK", TYPES[picture.suffix], picture.data) for picture in pictures]
        page = b"<html><body>" + b"<p>Nothing to see here.</p>" * 100 + b"</body></html>"
        self.gone = _answer(b"404 Not Found", b"text/html", page)
        self.broken = _answer(b"500 Internal Server Error", b"text/html", page)
        self.parked = _answer(b"200 OK", b"text/html", page)


class _Client(asyncio.Protocol):
    """One connection."""

    def __init__(self, answers: _Answers):
        self._answers = answers
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=2**24)
        address = transport.get_extra_info("sockname")[0]
        self._kind = Host(int(address.split(".")[2]))

    def data_received(self, data: bytes) -> None:
        self._received += data
        while b"\r\n\r\n" in self._received:
            request, _, self._received = self._received.partition(b"\r\n\r\n")
            self._answer(request.split(b" ", 2)[1].decode(), b"\r\nconnection: close" in request.lower())

    def _answer(self, path: str, is_last: bool) -> None:
        name = path.lstrip("/").partition(".")[0]
        kind, answers, transport = self._kind, self._answers, self._transport
        if kind is Host.SILENT:
            return
        if kind is Host.BROKEN:
            answer = answers.broken
        elif kind is Host.GONE or not name.isdecimal():
            answer = answers.gone
        elif kind is Host.PARKED:
            answer = answers.parked
        else:
            answer = answers.pictures[int(name)]
        if kind is Host.SLOW:
            self._answer_slowly(answer, is_last, random.Random(path))
        elif kind is Host.RESETTING and name.isdecimal():
            transport.write(answer[: len(answer) // 2])
            transport.close()
        else:
            transport.write(answer)
            if is_last:
                transport.close()

    def _answer_slowly(self, answer: bytes, is_last: bool, draw: random.Random) -> None:
        step = -(-len(answer) // SLOW_BODY_PIECES)
        pause = draw.uniform(*SLOW_BODY_SECONDS) / SLOW_BODY_PIECES

        def send(start: int) -> None:
            if self._transport.is_closing():
                return
            self._transport.write(answer[start : start + step])
            if start + step < len(answer):
                loop.call_later(pause, send, start + step)
            elif is_last:
                self._transport.close()

        loop = asyncio.get_running_loop()
        loop.call_later(draw.uniform(*SLOW_START_SECONDS), send, 0)


def _answer(status: bytes, kind: bytes, body: bytes) -> bytes:
    return b"HTTP/1.1 %b\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n%b" % (status, kind, len(body), body)


def _serve(connection: Connection, pictures: list[Picture], num_hosts: int, certificate: Path) -> None:
    asyncio.run(_serve_forever(connection, _Answers(pictures), num_hosts, certificate))


async def _serve_forever(connection: Connection, answers: _Answers, num_hosts: int, certificate: Path) -> None:
    loop = asyncio.get_running_loop()
    good = [f"127.0.{Host.GOOD:d}.{host + 1}" for host in range(num_hosts)]
    bad = [
        f"127.0.{kind:d}.{host + 1}"
        for kind in Host
        if kind not in (Host.GOOD, Host.REFUSING)
        for host in range(HOSTS_OF_A_KIND)
    ]
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    port = _free_port()
    await loop.create_server(lambda: _Client(answers), [*good, *bad], port, backlog=512)
    tls_port = _free_port()
    await loop.create_server(lambda: _Client(answers), good, tls_port, backlog=512, ssl=tls)
    connection.send((port, tls_port))
    await loop.create_future()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _make_certificate(folder: Path) -> Path:
    """Make one self-signed certificate for all hosts; the file contains the key too."""
    names = ",".join(f"IP:127.0.{Host.GOOD:d}.{host + 1}" for host in range(254))
    made = folder / "web.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=web", "-addext", f"subjectAltName={names}", "-keyout", folder / "key.pem", "-out", made],
        check=True, capture_output=True,
    )  # fmt: skip
    made.write_bytes(made.read_bytes() + (folder / "key.pem").read_bytes())
    return made
