import gzip
import tracemalloc
import zlib

import pytest

from diptych_shards.fetch.unpack import unpack
from tests.data_prep.made_pictures import encoded, scene

BODY = b"picture" * 1000


def raw_deflate(data):
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


@pytest.mark.parametrize(
    ("packed", "encoding"),
    [
        (BODY, ""),
        (BODY, "identity"),
        (gzip.compress(BODY), "gzip"),
        (gzip.compress(BODY), "x-gzip"),
        (gzip.compress(BODY) + b"rubbish", "gzip"),
        (zlib.compress(BODY), "deflate"),
        (raw_deflate(BODY), "deflate"),
        *(
            (BODY, name)
            for name in ("none", "utf-8", "binary", "aws-chunked", "null", "image/jpeg", "utf-8, binary", ",")
        ),
        (gzip.compress(BODY), "gzip, identity"),
        (gzip.compress(BODY), "aws-chunked,gzip"),
        (gzip.compress(BODY), "gzip;q=1.0"),
        (gzip.compress(zlib.compress(BODY)), "deflate, gzip"),
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
        (gzip.compress(BODY), "br", "bad_encoding"),
        (gzip.compress(BODY), "br, utf-8", "bad_encoding"),
        (BODY, "gzip, gzip, gzip, gzip", "bad_encoding"),
        (gzip.compress(BODY), "gzip,gzip", "bad_encoding"),
        (BODY, "gzip", "bad_encoding"),
        (BODY, "deflate", "bad_encoding"),
        (gzip.compress(BODY)[:-9], "gzip", "truncated_body"),
        (b"", "gzip", "truncated_body"),
        (gzip.compress(BODY + b"x"), "gzip", "too_many_bytes_unpacked"),
    ],
)
def test_what_cannot_be_unpacked_has_a_reason(packed, encoding, reason):
    assert unpack(packed, encoding, len(BODY)).reason == reason


def test_a_bomb_is_never_made_larger_than_the_limit():
    bomb = gzip.compress(bytes(200 * 2**20), compresslevel=1)
    tracemalloc.start()
    try:
        assert unpack(bomb, "gzip", 2**20).reason == "too_many_bytes_unpacked"
        assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
    finally:
        tracemalloc.stop()
