"""Read the answer to a request: its headers and its body, and whether it means a failure, a redirect or a pause."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime

from diptych.data.picture_formats import format_of
from diptych_shards.fetch.outcome import OUT_OF_ORDER, Fetched, FetchFailure, FetchReason, UrlError, status_failure
from diptych_shards.fetch.url import Url, parse_url

OPTED_OUT = FetchFailure(FetchReason.OPT_OUT.value, "Use of image disallowed by X-Robots-Tag directive")
TOO_MANY_BYTES = FetchFailure(FetchReason.TOO_MANY_BYTES.value, "too many bytes")
EMPTY = FetchFailure(FetchReason.EMPTY_BODY.value, "empty body")

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_WRONG_ANSWERS = frozenset({FetchReason.BAD_ANSWER, FetchReason.HEADERS_TOO_LARGE})

_STATUS_LINE = re.compile(rb"HTTP/[0-9.]+ +([2-9][0-9]{2})\b").match
_BLANK = (b"\r\n", b"\n")
_WANTED = re.compile(
    rb"(?im)^(x-robots-tag|tdm-reservation|content-encoding|content-length|location|retry-after)"
    rb"[ \t]*:[ \t]*(.*?)[ \t\r]*$"
)
_GZIP = 16 + zlib.MAX_WBITS
_KNOWN = frozenset({"gzip", "x-gzip", "deflate", "br", "zstd", "dcb", "dcz", "compress", "x-compress"})
"""Encodings that change the bytes. Servers also name others, such as `utf-8` or `binary`: these are ignored."""
MAX_LAYERS = 3
"""How many times a body may be compressed."""


@dataclass(frozen=True)
class Headers:
    """The headers that matter here, as the server sent them, without white space around the values."""

    location: str | None
    retry_after: str | None
    content_encoding: str
    """In lower case; empty if there is none."""
    content_length: int | None
    robots_tags: Sequence[str]
    tdm_reservation: str
    """Empty if there is none."""


@dataclass(frozen=True)
class Wanted:
    """How much of the body of an answer is wanted."""

    keeps_body: Callable[[int, Headers], bool]
    """Decides from status and headers whether the body is wanted at all."""
    max_bytes: int
    takes_part: bool = False
    """Whether the first part of a body that is longer than `max_bytes` is of use."""


@dataclass
class Answer:
    """What has arrived for a request so far."""

    status: int = 0
    """0 until the headers are complete."""
    headers: Headers | None = None
    chunks: list[bytes] = field(default_factory=list)
    """The wanted part of the body."""
    is_cut: bool = False
    """The body was longer than `Wanted` allows, and the transfer was ended."""
    reason: FetchReason | None = None
    """Why the answer is missing or incomplete; None if it is complete."""
    message: str = ""

    @property
    def held_bytes(self) -> int:
        return sum(map(len, self.chunks))

    @property
    def is_silence(self) -> bool:
        """Whether no answer came at all; a malformed answer counts as one, and so does one whose body breaks off."""
        return not self.status and self.reason is not None and self.reason not in _WRONG_ANSWERS

    @property
    def is_error(self) -> bool:
        """Whether the status is a server error, which the URL or its whole site may have caused."""
        return self.status in OUT_OF_ORDER

    @property
    def pause(self) -> Pause | None:
        """The pause that the site asks for, by a 429 or by a 503 with a Retry-After; else None."""
        seconds = retry_after_seconds(self.headers.retry_after if self.headers else None)
        if self.status == 429 or (self.status == 503 and seconds is not None):
            return Pause(status_failure(self.status), seconds)
        return None


@dataclass(frozen=True)
class Pause:
    """A request of a site to be left alone for a while."""

    failure: FetchFailure
    seconds: float | None
    """None if it does not say for how long."""


def read_picture(answer: Answer, url: Url, wanted: Wanted, *, is_opted_out: bool) -> Fetched | FetchFailure | Url:
    """The bytes of a picture, why there are none, or the URL to which the answer redirects."""
    if answer.status == 200 and is_opted_out:
        return OPTED_OUT
    outcome = read_file(answer, url, wanted)
    return EMPTY if isinstance(outcome, Fetched) and not outcome.data else outcome


def read_file(answer: Answer, url: Url, wanted: Wanted) -> Fetched | FetchFailure | Url:
    """The same for any other file, such as a robots.txt, which may be empty."""
    status, headers = answer.status, answer.headers
    if status in _REDIRECTS and headers is not None and headers.location:
        try:
            return parse_url(headers.location, base=url)
        except UrlError as error:
            return error.failure
    if status and status != 200:
        return status_failure(status)
    if answer.reason is not None:
        return FetchFailure(answer.reason.value, answer.message)
    if answer.is_cut and not wanted.takes_part:
        return TOO_MANY_BYTES
    data = unpack(b"".join(answer.chunks), headers.content_encoding if headers else "", wanted.max_bytes)
    return data if isinstance(data, FetchFailure) else Fetched(data, str(url))


def retry_after_seconds(value: str | None, *, now: datetime | None = None) -> float | None:
    """Read a Retry-After header, which holds seconds or a date; None if it is missing or unreadable."""
    if value is None:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        until = parsedate_to_datetime(value)
    except (TypeError, ValueError):
        return None
    if until.tzinfo is None:
        until = until.replace(tzinfo=timezone.utc)
    return max(0.0, (until - (now or datetime.now(timezone.utc))).total_seconds())


def read_headers(lines: Sequence[bytes]) -> tuple[int, Headers] | None:
    """Read status and headers from the last block of these lines; None if it is incomplete.

    There may be blocks before it, such as that of 103 Early Hints.
    """
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
    """Undo the Content-Encoding of a body, without ever making more than `max_bytes` bytes.

    encoding: the header in lower case: a list, in the order in which the encodings were applied.
    """
    names = [name for part in encoding.split(",") if (name := part.partition(";")[0].strip()) in _KNOWN]
    if len(names) > MAX_LAYERS:
        return FetchFailure(FetchReason.BAD_ENCODING.value, "packed too many times")
    for name in reversed(names):
        unpacked = _unpack(body, name, max_bytes)
        if isinstance(unpacked, FetchFailure):
            # The header is wrong and the body is a picture: compressed bytes do not start as a picture does.
            is_bare = unpacked.reason == FetchReason.BAD_ENCODING.value and format_of(body) is not None
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
        # Some servers send the raw stream of RFC 1951 under this name; it does not start with a zlib header.
        is_zlib = len(body) > 1 and body[0] & 0x0F == 8 and (body[0] << 8 | body[1]) % 31 == 0
        bits = zlib.MAX_WBITS if is_zlib else -zlib.MAX_WBITS
    else:
        return FetchFailure(FetchReason.BAD_ENCODING.value, "encoding that was not asked for")
    decompressor = zlib.decompressobj(bits)
    try:
        data = decompressor.decompress(body, max_bytes + 1)
    except zlib.error:
        return FetchFailure(FetchReason.BAD_ENCODING.value, "body is not in the encoding it claims")
    if len(data) > max_bytes:
        return FetchFailure(FetchReason.TOO_MANY_BYTES_UNPACKED.value, "too many bytes when unpacked")
    if not decompressor.eof:
        return FetchFailure(FetchReason.TRUNCATED_BODY.value, "body shorter than announced")
    return data
