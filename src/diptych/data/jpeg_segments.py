"""The segments of a JPEG: what its header says, how many scans there are, and the picture without metadata."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

_EXIF = b"Exif\0\0"
_PROFILE = b"ICC_PROFILE\0"
_SOI, _EOI, _SOS = 0xD8, 0xD9, 0xDA
_APP0, _APP1, _APP2, _APP14, _APP15, _COMMENT = 0xE0, 0xE1, 0xE2, 0xEE, 0xEF, 0xFE
_NO_FRAMES = (0xC4, 0xC8, 0xCC)
_PROGRESSIVE = (0xC2, 0xC6, 0xCA, 0xCE)
_PIXELS = 0
MAX_SEGMENTS = 10_000
"""Cameras write tens, with a profile of 4 MB."""
_END_OF_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)
"""Within a scan, FF is followed by 00, by the number of a restart, or by padding."""


class JpegStructureError(ValueError):
    """The bytes are not a chain of segments from start to end."""


class TooManySegmentsError(JpegStructureError):
    """The file has so many segments that every reader would take seconds."""


class _Segment(NamedTuple):
    marker: int
    """`_PIXELS` for what follows the header of a scan."""
    start: int
    """Of the marker."""
    body: int
    end: int


@dataclass(frozen=True)
class JpegHeader:
    """What is in front of a JPEG's first scan."""

    has_many_scans: bool
    """Whether the decoder goes over the picture more than once (progressive, or a scan for each colour)."""
    exif: tuple[bytes, ...]
    """Each EXIF segment, as a TIFF file contains it, from its byte order on."""
    profile: tuple[bytes, ...]
    """Each part of the ICC profile."""


def read_header(data: bytes) -> JpegHeader:
    """Read the segments up to the first scan.

    Raises:
        JpegStructureError: if the segments do not lead to a scan.
    """
    num_components = 0
    is_progressive = False
    exif: list[bytes] = []
    profile: list[bytes] = []
    for segment in _segments(data):
        if segment.marker == _SOS:
            has_many_scans = is_progressive or data[segment.body] < num_components
            return JpegHeader(has_many_scans, tuple(exif), tuple(profile))
        if 0xC0 <= segment.marker <= 0xCF and segment.marker not in _NO_FRAMES:
            num_components = int.from_bytes(data[segment.body + 5 : segment.body + 6], "big")
            is_progressive = segment.marker in _PROGRESSIVE
        elif segment.marker == _APP1 and data.startswith(_EXIF, segment.body):
            exif.append(data[segment.body + len(_EXIF) : segment.end])
        elif segment.marker == _APP2 and data.startswith(_PROFILE, segment.body):
            profile.append(data[segment.body + len(_PROFILE) + 2 : segment.end])
    raise JpegStructureError("no scan")


def num_scans(data: bytes, enough: int) -> int:
    """How often the decoder goes over the picture; up to `enough` perhaps too high, never too low."""
    possible = data.count(b"\xff\xda")
    if possible <= enough:
        return possible
    try:
        return sum(segment.marker == _SOS for segment in _segments(data))
    except JpegStructureError:
        return possible


def without_metadata(data: bytes) -> bytes:
    """The JPEG without metadata: EXIF, XMP, IPTC, profile, comments, thumbnail, second picture, bytes after its end.

    Raises:
        JpegStructureError: if the segments do not lead from the start to the end.
    """
    kept = [b"\xff\xd8"]
    for segment in _segments(data):
        if not _is_metadata(segment):
            kept.append(data[segment.start : segment.end])
    return b"".join(kept)


def _is_metadata(segment: _Segment) -> bool:
    if segment.marker == _APP0:
        return segment.end - segment.start != 18  # a longer one contains a thumbnail
    # The decoder needs APP14: it says how colours are written.
    return segment.marker == _COMMENT or (_APP1 <= segment.marker <= _APP15 and segment.marker != _APP14)


def _segments(data: bytes) -> Iterator[_Segment]:
    """Every segment after the first marker, in order, including the end."""
    position = 2
    for _ in range(MAX_SEGMENTS):
        start = position
        if data[position : position + 1] != b"\xff":
            raise JpegStructureError(f"no marker at byte {position}")
        while data[position : position + 1] == b"\xff":
            position += 1
        marker = data[position] if position < len(data) else 0
        body = position + 1
        if marker == _EOI:
            yield _Segment(marker, start, body, body)
            return
        if marker < 0xC0 or 0xD0 <= marker <= _SOI:
            raise JpegStructureError(f"marker {marker:02x} at byte {start}")
        position = end = body + int.from_bytes(data[body : body + 2], "big")
        if end < body + 2 or end >= len(data):
            raise JpegStructureError(f"the segment at byte {start} has no end")
        yield _Segment(marker, start, body + 2, end)
        if marker == _SOS:
            found = _END_OF_SCAN.search(data, end)
            if found is None:
                raise JpegStructureError("the last scan has no end")
            position = found.start()
            yield _Segment(_PIXELS, end, end, position)
    raise TooManySegmentsError(f"over {MAX_SEGMENTS} segments")
