"""EXIF: the orientation, and a JSON string for the metadata table.

Both functions take EXIF as a TIFF file contains it, from its byte order on, and trust none of it.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from PIL import ExifTags

from diptych.data.tiff_page import TIFF_ORDERS

_ORIENTATION, _EXIF_POINTER, _GPS_POINTER, _INTEROPERABILITY_POINTER = 0x0112, 0x8769, 0x8825, 0xA005
_MAKER_NOTE = 0x927C
_ASCII, _SHORT, _UNDEFINED = 2, 3, 7
_FORMATS = {1: "B", 2: "s", 3: "H", 4: "I", 5: "II", 6: "b", 7: "s", 8: "h", 9: "i", 10: "ii", 11: "f", 12: "d"}
_MAX_ENTRIES = 512
_MAX_VALUES = 20
_MAX_TEXT = 1000
_ORIENTATIONS = {
    1: "Horizontal (normal)",
    2: "Mirrored horizontal",
    3: "Rotated 180",
    4: "Mirrored vertical",
    5: "Mirrored horizontal then rotated 90 CCW",
    6: "Rotated 90 CW",
    7: "Mirrored horizontal then rotated 90 CW",
    8: "Rotated 90 CCW",
}


@dataclass(frozen=True)
class _Entry:
    tag: int
    kind: int
    num_values: int
    value: int
    """Position of the values."""


def exif_orientation(exif: bytes | None) -> int:
    """1 to 8; 1 if there is no EXIF or it cannot be read."""
    order = TIFF_ORDERS.get((exif or b"")[:4])
    if exif is None or order is None:
        return 1
    for entry in _entries(exif, order, _number(exif, 4, f"{order}I")):
        value = _number(exif, entry.value, f"{order}H")
        if entry.tag == _ORIENTATION and entry.kind == _SHORT and 1 <= value <= 8:
            return value
    return 1


def exif_json(exif: bytes | None) -> str:
    """A JSON object of strings with img2dataset's keys (`Image Make`, `EXIF ISOSpeedRatings`, `GPS GPSLatitude`).

    `{}` if there is no EXIF. Maker notes and what cannot be read are left out.
    """
    found: dict[str, str] = {}
    order = TIFF_ORDERS.get((exif or b"")[:4])
    if exif is None or order is None:
        return "{}"
    first = _number(exif, 4, f"{order}I")
    groups = [("Image", first), ("Thumbnail", _next_directory(exif, order, first))]
    seen: set[int] = set()
    while groups:
        group, start = groups.pop(0)
        if start in seen or start == 0:
            continue
        seen.add(start)
        for entry in _entries(exif, order, start):
            below = {_EXIF_POINTER: "EXIF", _GPS_POINTER: "GPS", _INTEROPERABILITY_POINTER: "Interoperability"}
            if entry.tag in below and group in ("Image", "EXIF"):
                groups.append((below[entry.tag], _number(exif, entry.value, f"{order}I")))
            text = None if entry.tag == _MAKER_NOTE else _text(exif, order, entry)
            if text is not None:
                found.setdefault(f"{group} {_name(group, entry.tag)}", text)
    return json.dumps(found)


def _entries(exif: bytes, order: str, start: int) -> Iterator[_Entry]:
    num_entries = _number(exif, start, f"{order}H") if start else 0
    for index in range(min(num_entries, _MAX_ENTRIES)):
        position = start + 2 + 12 * index
        if position + 12 > len(exif):
            return
        tag, kind, num_values = struct.unpack_from(f"{order}HHI", exif, position)
        if kind not in _FORMATS:
            continue
        length = struct.calcsize(f"<{_FORMATS[kind]}") * num_values
        value = position + 8 if length <= 4 else _number(exif, position + 8, f"{order}I")
        if value + length <= len(exif):
            yield _Entry(tag, kind, num_values, value)


def _next_directory(exif: bytes, order: str, start: int) -> int:
    return _number(exif, start + 2 + 12 * _number(exif, start, f"{order}H"), f"{order}I")


def _number(exif: bytes, position: int, format: str) -> int:
    """The number at this position; 0 if the bytes end before it does."""
    if position + struct.calcsize(format) > len(exif):
        return 0
    return int(struct.unpack_from(format, exif, position)[0])


def _name(group: str, tag: int) -> str:
    names = ExifTags.GPSTAGS if group == "GPS" else ExifTags.TAGS
    return names.get(tag, f"Tag 0x{tag:04X}")


def _text(exif: bytes, order: str, entry: _Entry) -> str | None:
    if entry.kind in (_ASCII, _UNDEFINED):
        raw = exif[entry.value : entry.value + min(entry.num_values, _MAX_TEXT)].rstrip(b"\0 ")
        if entry.kind == _ASCII or (raw.isascii() and raw.decode("latin-1").isprintable()):
            return raw.split(b"\0")[0].decode("utf-8", "replace").strip()
        values = [str(byte) for byte in raw]
    else:
        num_values = min(entry.num_values, _MAX_VALUES + 1)
        numbers = struct.unpack_from(f"{order}{_FORMATS[entry.kind] * num_values}", exif, entry.value)
        values = [str(number) for number in numbers]
        if len(_FORMATS[entry.kind]) == 2:
            values = [_ratio(*numbers[at : at + 2]) for at in range(0, len(numbers), 2)]
    if entry.tag == _ORIENTATION and values[:1] and values[0].isdigit():
        return _ORIENTATIONS.get(int(values[0]), values[0])
    if len(values) == 1:
        return values[0]
    ending = ", ...]" if len(values) > _MAX_VALUES else "]"
    return "[" + ", ".join(values[:_MAX_VALUES]) + ending


def _ratio(numerator: int, denominator: int) -> str:
    return str(Fraction(numerator, denominator)) if denominator else f"{numerator}/0"
