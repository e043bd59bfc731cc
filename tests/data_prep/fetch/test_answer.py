import functools
import gzip
import tracemalloc
import zlib
from datetime import datetime, timezone

import pytest

from diptych_shards.fetch.answer import retry_after_seconds, unpack
from tests.data_prep.made_pictures import encoded, scene

BODY = b"picture" * 1000
zipped = functools.partial(gzip.compress, mtime=0)  # equal bytes in every process, since test names contain them


def raw_deflate(data):
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


@pytest.mark.parametrize(
    ("packed", "encoding"),
    [
        (BODY, ""),
        (BODY, "identity"),
        (zipped(BODY), "gzip"),
        (zipped(BODY), "x-gzip"),
        (zipped(BODY) + b"rubbish", "gzip"),
        (zlib.compress(BODY), "deflate"),
        (raw_deflate(BODY), "deflate"),
        *(
            (BODY, name)
            for name in ("none", "utf-8", "binary", "aws-chunked", "null", "image/jpeg", "utf-8, binary", ",")
        ),
        (zipped(BODY), "gzip, identity"),
        (zipped(BODY), "aws-chunked,gzip"),
        (zipped(BODY), "gzip;q=1.0"),
        (zipped(zlib.compress(BODY)), "deflate, gzip"),
    ],
)
def test_bodies_are_unpacked(packed, encoding):
    assert unpack(packed, encoding, len(BODY)) == BODY


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "gzip, br"])
def test_a_picture_that_is_not_packed_is_taken_whatever_the_header_says(encoding):
    picture = encoded(scene(20, 30))
    assert unpack(picture, encoding, len(picture)) == picture


@pytest.mark.parametrize(
    ("packed", "encoding", "reason"),
    [
        (zipped(BODY), "br", "bad_encoding"),
        (zipped(BODY), "br, utf-8", "bad_encoding"),
        (BODY, "gzip, gzip, gzip, gzip", "bad_encoding"),
        (zipped(BODY), "gzip,gzip", "bad_encoding"),
        (BODY, "gzip", "bad_encoding"),
        (BODY, "deflate", "bad_encoding"),
        (zipped(BODY)[:-9], "gzip", "truncated_body"),
        (b"", "gzip", "truncated_body"),
        (zipped(BODY + b"x"), "gzip", "too_many_bytes_unpacked"),
    ],
)
def test_what_cannot_be_unpacked_has_a_reason(packed, encoding, reason):
    assert unpack(packed, encoding, len(BODY)).reason == reason


def test_a_bomb_is_never_unpacked_beyond_the_limit():
    bomb = gzip.compress(bytes(200 * 2**20), compresslevel=1)
    tracemalloc.start()
    try:
        assert unpack(bomb, "gzip", 2**20).reason == "too_many_bytes_unpacked"
        assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("120", 120.0),
        (" 0 ", 0.0),
        ("99999999999999999999", 999999999.0),
        ("Tue, 24 Nov 2026 12:01:00 GMT", 60.0),
        ("Tuesday, 24-Nov-26 12:01:00 GMT", 60.0),
        ("Tue, 24 Nov 2026 11:00:00 GMT", 0.0),
        ("-5", None),
        ("soon", None),
        ("1.5", None),
        ("Tue, 99 Nov 2026 12:01:00 GMT", None),
    ],
)
def test_retry_after_is_read_as_seconds_or_a_date(value, seconds):
    now = datetime(2026, 11, 24, 12, 0, tzinfo=timezone.utc)
    assert retry_after_seconds(value, now=now) == seconds
