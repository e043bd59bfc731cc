"""The form of an HTTP answer: its status, those of its headers that matter here, and a body that is compressed."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from diptych.data.picture_formats import format_of
from diptych_shards.fetch.outcome import FetchFailure, FetchReason

_STATUS_LINE = re.compile(rb"HTTP/[0-9.]+ +([2-9][0-9]{2})\b").match
_BLANK = (b"\r\n", b"\n")
_WANTED = re.compile(
    rb"(?im)^(x-robots-tag|tdm-reservation|content-encoding|content-length|location|retry-after)"
    rb"[ \t]*:[ \t]*(.*?)[ \t\r]*$"
)
_GZIP = 16 + zlib.MAX_WBITS
_KNOWN = frozenset({"gzip", "x-gzip", "deflate", "br", "zstd", "dcb", "dcz", "compress", "x-compress"})
"""What else is named (`utf-8`, `binary`, `aws-chunked`) packs nothing: servers say what they like."""
MAX_LAYERS = 3


@dataclass(frozen=True)
class Headers:
    """Values as they came, without white space around them."""

    location: str | None
    retry_after: str | None
    content_encoding: str
    """In lower case; empty if there is none."""
    content_length: int | None
    robots_tags: Sequence[str]
    tdm_reservation: str
    """Empty if there is none."""


def read_headers(lines: Sequence[bytes]) -> tuple[int, Headers] | None:
    """Status and headers of the last block of these lines, since that of 103 Early Hints is before; None if cut off."""
    start = len(lines) - 1
    while start > 0 and not (lines[start][:5] == b"HTTP/" and lines[start - 1] in _BLANK):
        start -= 1
    block = lines[start:] if lines else [b""]
    status = _STATUS_LINE(block[0])
    if status is None or not any(line in _BLANK for line in block):
        return None
    values: dict[bytes, list[str]] = {}
    for name, value in _WANTED.findall(b"".join(block)):
        values.setdefault(name.lower(), []).append(_text(value))
    length = values.get(b"content-length", [""])[-1]
    return int(status[1]), Headers(
        location=values.get(b"location", [None])[0],
        retry_after=values.get(b"retry-after", [None])[0],
        content_encoding=",".join(values.get(b"content-encoding", [])).lower().strip(),
        content_length=int(length) if length.isascii() and length.isdigit() and len(length) < 20 else None,
        robots_tags=values.get(b"x-robots-tag", []),
        tdm_reservation=values.get(b"tdm-reservation", [""])[-1],
    )


def unpack(body: bytes, encoding: str, max_bytes: int) -> bytes | FetchFailure:
    """The body without its Content-Encoding; nothing larger than `max_bytes` is ever made.

    encoding: the header in lower case, a list with the first that was applied first.
    """
    names = [name for part in encoding.split(",") if (name := part.partition(";")[0].strip()) in _KNOWN]
    if len(names) > MAX_LAYERS:
        return FetchFailure(FetchReason.bad_encoding.value, "packed too many times")
    for name in reversed(names):
        unpacked = _unpack(body, name, max_bytes)
        if isinstance(unpacked, FetchFailure):
            # A picture as it is, under a header that is wrong: what was packed does not begin as one does.
            is_bare = unpacked.reason == FetchReason.bad_encoding.value and format_of(body) is not None
            return body if is_bare else unpacked
        body = unpacked
    return body


def _text(value: bytes) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _unpack(body: bytes, encoding: str, max_bytes: int) -> bytes | FetchFailure:
    if encoding in ("gzip", "x-gzip"):
        bits = _GZIP
    elif encoding == "deflate":
        # Some send the raw stream of RFC 1951 under this name, which begins like no zlib header.
        is_zlib = len(body) > 1 and body[0] & 0x0F == 8 and (body[0] << 8 | body[1]) % 31 == 0
        bits = zlib.MAX_WBITS if is_zlib else -zlib.MAX_WBITS
    else:
        return FetchFailure(FetchReason.bad_encoding.value, "encoding that was not asked for")
    decompressor = zlib.decompressobj(bits)
    try:
        data = decompressor.decompress(body, max_bytes + 1)
    except zlib.error:
        return FetchFailure(FetchReason.bad_encoding.value, "body is not in the encoding it claims")
    if len(data) > max_bytes:
        return FetchFailure(FetchReason.too_many_bytes_unpacked.value, "too many bytes when unpacked")
    if not decompressor.eof:
        return FetchFailure(FetchReason.truncated_body.value, "body shorter than announced")
    return data
