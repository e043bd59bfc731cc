"""Bodies that a server compressed although it was asked not to."""

from __future__ import annotations

import zlib

from diptych.data.picture_formats import format_of
from diptych_shards.fetch.outcome import FetchFailure, FetchReason

_GZIP = 16 + zlib.MAX_WBITS
_KNOWN = frozenset({"gzip", "x-gzip", "deflate", "br", "zstd", "dcb", "dcz", "compress", "x-compress"})
"""What else is named (`utf-8`, `binary`, `aws-chunked`) packs nothing: servers say what they like."""
MAX_LAYERS = 3


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
