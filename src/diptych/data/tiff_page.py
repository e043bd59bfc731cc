"""Reduce a TIFF to its first page, and refuse one that would cost far more to open than its pixels."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator

import numpy as np

from diptych.data.picture_formats import MAX_PIXELS
from diptych.errors import UserError

TIFF_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}
"""Byte orders of numbers, by the first four bytes of the file; EXIF starts as a TIFF does."""
_STRIPS, _STRIP_BYTES, _TILES, _TILE_BYTES = 0x0111, 0x0117, 0x0144, 0x0145
_TILE_WIDTH, _TILE_HEIGHT = 0x0142, 0x0143
_NUMBERS = (_STRIPS, _STRIP_BYTES, _TILES, _TILE_BYTES, _TILE_WIDTH, _TILE_HEIGHT)
_BYTES_OF_TYPE = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_SHORT, _LONG = 3, 4
_MOST_TAGS = 1000
_MOST_PIECES = 100_000
"""Strips or tiles: one for each line of the tallest picture. Each costs the reader a step, even if it is empty."""


def first_page(data: bytes) -> bytes:
    """Cut the link from the first page to the next: Pillow would follow a chain of pages for minutes.

    Raises:
        ValueError: if there is no first page, or if it has too many tags or pieces or is not whole.
    """
    try:
        order = TIFF_ORDERS[data[:4]]
        (start,) = struct.unpack_from(f"{order}I", data, 4)
        (num_tags,) = struct.unpack_from(f"{order}H", data, start)
    except (KeyError, struct.error) as error:
        raise UserError("truncated: no first page") from error
    link = start + 2 + 12 * num_tags
    if num_tags > _MOST_TAGS:
        raise UserError(f"{num_tags} tags; at most {_MOST_TAGS}")
    if link + 4 > len(data):
        raise UserError("truncated: the tags of the first page")
    _check_pieces(data, dict(_values(data, order, start, num_tags)))
    return data if not any(data[link : link + 4]) else data[:link] + bytes(4) + data[link + 4 :]


def _values(data: bytes, order: str, start: int, num_tags: int) -> Iterator[tuple[int, np.ndarray]]:
    """The numbers that locate strips and tiles, by tag."""
    for tag in range(num_tags):
        at = start + 2 + 12 * tag
        name, kind, count, offset = struct.unpack_from(f"{order}HHII", data, at)
        num_bytes = _BYTES_OF_TYPE.get(kind, 0) * count
        first = at + 8 if num_bytes <= 4 else offset
        if first + num_bytes > len(data):
            raise UserError("truncated: a tag of the first page")
        if name in _NUMBERS and kind in (_SHORT, _LONG):
            if count > _MOST_PIECES:
                raise UserError(f"{count} strips or tiles; at most {_MOST_PIECES}")
            yield name, np.frombuffer(data, f"{order}u{_BYTES_OF_TYPE[kind]}", count, first).astype(np.int64)


def _check_pieces(data: bytes, values: dict[int, np.ndarray]) -> None:
    # A tile may be larger than the picture, and it is decoded whole.
    sides = [int(values[side].max(initial=0)) for side in (_TILE_WIDTH, _TILE_HEIGHT) if side in values]
    if len(sides) == 2 and math.prod(sides) > MAX_PIXELS:
        raise UserError(f"tiles of {sides[0]} x {sides[1]} pixels; at most {MAX_PIXELS}")
    for starts, lengths in ((_STRIPS, _STRIP_BYTES), (_TILES, _TILE_BYTES)):
        if starts in values and lengths in values and len(values[starts]) == len(values[lengths]):
            if ((values[starts] + values[lengths]) > len(data)).any():
                raise UserError("truncated: a strip or tile")
