"""Read a server's answer from a record: status, headers, and the body without its encodings."""

from __future__ import annotations

import re
import zlib
from typing import NamedTuple

import brotli
import pyarrow

# Some recorders write the protocol twice.
_STATUS = re.compile(rb"(?:HTTP/\d(?:\.\d)?\s+){1,2}(\d{3})")
_CHUNK = re.compile(rb"[ \t]*([0-9a-fA-F]{1,8})[^\r\n]{0,1000}\r?\n")
_CHARSET = re.compile(rb"charset\s*=\s*[\"']?\s*([\w.:-]+)", re.IGNORECASE)
_STEP_BYTES = 1 << 16
"""Bytes that are unpacked at a time: a few bytes of brotli or zstd can become gigabytes."""
_OF_TEXT = b"\t\n\f\r\x1b" + bytes(range(0x20, 0x100))
_HTML = (b"text/html", b"application/xhtml+xml")


class EncodingError(ValueError):
    """The body cannot be unpacked."""


class Answer(NamedTuple):
    status: int
    headers: dict[bytes, bytes]
    """By name in lower case."""
    body: bytes

    @property
    def is_html(self) -> bool:
        kind = self.headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        return kind in _HTML or not kind and self.body[:512].lstrip()[:1] == b"<"

    def text_of(self, name: bytes) -> str:
        """The value of a header, by its name in lower case; empty if there is none."""
        return self.headers.get(name, b"").decode("ascii", "replace")

    @property
    def charset(self) -> str | None:
        found = _CHARSET.search(self.headers.get(b"content-type", b""))
        return found[1].decode("ascii", "replace") if found else None


def read_answer(block: bytes) -> Answer:
    """Parse an answer; its status is 0 if the block does not look like HTTP."""
    status = _STATUS.match(block)
    ends = [(end, len(blank)) for blank in (b"\r\n\r\n", b"\n\n") if (end := block.find(blank, 0, 1 << 17)) >= 0]
    end, length = min(ends, default=(len(block), 0))
    headers: dict[bytes, bytes] = {}
    for line in block[:end].split(b"\n")[1:]:
        name, _, text = line.partition(b":")
        name = name.strip().lower()
        if name == b"x-robots-tag" and name in headers:  # each of its lines counts
            headers[name] += b"\n" + text.strip()
        else:
            headers.setdefault(name, text.strip())
    return Answer(int(status[1]) if status else 0, headers, block[end + length :])


def decoded_body(answer: Answer, max_bytes: int) -> bytes:
    """The body without transfer and content encodings, cut at max_bytes.

    Crawlers keep these headers after they have decoded the body, so a body that looks like text counts as decoded.

    Raises:
        EncodingError: the encoding is unknown, or nothing can be decoded.
    """
    body = answer.body
    if answer.headers.get(b"transfer-encoding", b"").lower().endswith(b"chunked"):
        body = _joined_chunks(body)
    encodings = [name.strip().lower() for name in answer.headers.get(b"content-encoding", b"").split(b",")]
    for encoding in reversed([name for name in encodings if name not in (b"", b"identity", b"none")]):
        if _is_text(body[:512]):
            break
        if encoding in (b"gzip", b"x-gzip", b"deflate"):
            body = _inflated(body, max_bytes)
        elif encoding == b"br":
            body = _unbrotlied(body, max_bytes)
        elif encoding == b"zstd":
            body = _unzstded(body, max_bytes)
        else:
            raise EncodingError(f"content encoding {encoding.decode('ascii', 'replace')[:40]}")
    return body[:max_bytes]


def _is_text(beginning: bytes) -> bool:
    """Whether it is text, or markup with odd bytes in it; packed bytes soon have a control character."""
    return not beginning.translate(None, _OF_TEXT) or beginning.lstrip()[:1] == b"<"


def _joined_chunks(body: bytes) -> bytes:
    parts = []
    position = 0
    while chunk := _CHUNK.match(body, position):
        length = int(chunk[1], 16)
        if length == 0:
            break
        parts.append(body[chunk.end() : chunk.end() + length])
        position = chunk.end() + length
        position += 2 if body.startswith(b"\r\n", position) else 1
    return b"".join(parts) if parts else body


def _inflated(body: bytes, max_bytes: int) -> bytes:
    """Inflate as much as possible; of a body that was cut, the beginning."""
    for window_bits in (47, -15):  # gzip or zlib by the header; raw deflate, which some servers send as deflate
        decoder = zlib.decompressobj(window_bits)
        parts: list[bytes] = []
        size = 0
        try:
            for start in range(0, len(body), 1 << 14):
                part = decoder.decompress(body[start : start + (1 << 14)], max_bytes - size)
                parts.append(part)
                size += len(part)
                if decoder.eof or size >= max_bytes:
                    break
        except zlib.error:
            pass
        if size:
            return b"".join(parts)
    raise EncodingError("a body that is not what its content encoding says")


def _unbrotlied(body: bytes, max_bytes: int) -> bytes:
    decoder = brotli.Decompressor()
    parts: list[bytes] = []
    size = start = 0
    try:
        while size < max_bytes and not decoder.is_finished():
            taken = body[start : start + _STEP_BYTES] if decoder.can_accept_more_data() else b""
            start += len(taken)
            part = decoder.process(taken, output_buffer_limit=_STEP_BYTES)
            if not taken and not part:
                break
            parts.append(part)
            size += len(part)
    except brotli.error:
        pass
    if not size:
        raise EncodingError("a body that is not what its content encoding says")
    return b"".join(parts)


def _unzstded(body: bytes, max_bytes: int) -> bytes:
    stream = pyarrow.CompressedInputStream(pyarrow.BufferReader(body), "zstd")
    parts: list[bytes] = []
    size = 0
    try:
        while size < max_bytes and (part := stream.read(_STEP_BYTES)):
            parts.append(part)
            size += len(part)
    except OSError:
        pass
    if not size:
        raise EncodingError("a body that is not what its content encoding says")
    return b"".join(parts)
