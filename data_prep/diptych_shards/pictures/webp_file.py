"""WebP straight through libwebp: for the plain ones half of what Pillow takes, and the same pixels.

Pillow reads every WebP as an animation: in RGBA, with a canvas for the frame before, and copies it three times. Its own
libwebp is asked here, the one that it is linked to. Transparency, animation and whatever is odd is left to Pillow.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache, partial

import numpy as np

from diptych_shards.pictures.four_bytes import three_of
from diptych_shards.pictures.plain import Plain

_FLAGS = {b"ICCP": 0x20, b"EXIF": 0x08, b"XMP ": 0x04}
_MOST_CHUNKS = 100


def open_plain(data: bytes) -> Plain | None:
    """None unless the file is plain, whole and in order, and libwebp can be asked."""
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or _decode_into() is None:
        return None
    end = 8 + int.from_bytes(data[4:8], "little")
    if end > len(data):
        return None
    chunks: dict[bytes, tuple[int, int]] = {}
    position = 12
    while position + 8 <= end and len(chunks) < _MOST_CHUNKS:
        name, length = data[position : position + 4], int.from_bytes(data[position + 4 : position + 8], "little")
        if name in chunks or position + 8 + length > end:
            return None
        chunks[name] = position + 8, length
        position += 8 + length + length % 2
    size = _size(data, chunks)
    if size is None or not _is_plain(data, chunks, size):
        return None
    exif, profile = _content(data, chunks, b"EXIF").removeprefix(b"Exif\0\0"), _content(data, chunks, b"ICCP")
    frame = chunks.get(b"VP8 ") or chunks[b"VP8L"]
    return Plain("WEBP", *size, partial(_decode, data, size, frame), exif or None, profile)


def _decode(data: bytes, size: tuple[int, int], frame: tuple[int, int]) -> np.ndarray | None:
    """The pixels, as a view on an array of four bytes each. frame: where it begins in the file, and its length."""
    decode_into = _decode_into()
    assert decode_into is not None
    (width, height), (start, length) = size, frame
    # The frame alone: given the file, libwebp would read on behind the frame's end.
    encoded = np.frombuffer(data, np.uint8, length, start)
    four_bytes = np.empty((height, width, 4), np.uint8)
    if not decode_into(encoded.ctypes.data, length, four_bytes.ctypes.data, four_bytes.nbytes, 4 * width):
        return None
    return three_of(four_bytes)


def _size(data: bytes, chunks: dict[bytes, tuple[int, int]]) -> tuple[int, int] | None:
    """Width and height, as the frame tells them."""
    if (b"VP8 " in chunks) == (b"VP8L" in chunks):
        return None
    if b"VP8 " in chunks:
        start, length = chunks[b"VP8 "]
        if length < 10 or data[start + 3 : start + 6] != b"\x9d\x01\x2a":
            return None
        width, height = (int.from_bytes(data[start + at : start + at + 2], "little") & 0x3FFF for at in (6, 8))
    else:
        start, length = chunks[b"VP8L"]
        if length < 5 or data[start] != 0x2F:
            return None
        bits = int.from_bytes(data[start + 1 : start + 5], "little")
        if bits >> 28:  # transparency, or another version
            return None
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return (width, height) if width and height else None


def _is_plain(data: bytes, chunks: dict[bytes, tuple[int, int]], size: tuple[int, int]) -> bool:
    if chunks.keys() == {b"VP8 "} or chunks.keys() == {b"VP8L"}:
        return True
    start, length = chunks.get(b"VP8X", (0, 0))
    # Of transparency, animation, and what is reserved there is no flag here.
    flags = sum(flag for name, flag in _FLAGS.items() if name in chunks)
    if length != 10 or data[start] != flags or chunks.keys() & {b"ALPH", b"ANIM", b"ANMF"}:
        return False
    canvas = (int.from_bytes(data[start + at : start + at + 3], "little") + 1 for at in (4, 7))
    return tuple(canvas) == size


def _content(data: bytes, chunks: dict[bytes, tuple[int, int]], name: bytes) -> bytes:
    start, length = chunks.get(name, (0, 0))
    return data[start : start + length]


@cache
def _decode_into() -> Callable[..., int | None] | None:
    """WebPDecodeRGBAInto, where Pillow's libwebp is a library that can be asked."""
    try:
        from PIL import _webp

        # Symbols of the libraries that a library is linked to are found through it.
        found = ctypes.CDLL(_webp.__file__)["WebPDecodeRGBAInto"]
    except (ImportError, OSError, AttributeError):
        return None
    found.restype = ctypes.c_void_p
    found.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return found
