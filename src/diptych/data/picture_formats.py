"""Which pictures are read and stored: formats, endings of names, largest size.

All readers and writers share this table, so that none stores a picture that another refuses.
"""

from __future__ import annotations

MAX_PIXELS = 100_000_000
"""Of a picture that is decoded or stored, anywhere. Decoding takes up to ten bytes a pixel. A command may set a lower
limit, never a higher one.
"""

ENDINGS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif",),
    "HEIC": (".heic", ".heif"),
}
"""Of file names, by format. The ending decides whether a file is opened as a picture; the content gives the format."""
PICTURE_FORMATS = tuple(ENDINGS)
"""Formats that are read. If a decoder is missing (HEIC needs an extra), the refusal says how to install it."""
PICTURE_ENDINGS = tuple(ending for endings in ENDINGS.values() for ending in endings)
UNREAD_ENDINGS = (*(".svg", ".jp2", ".jxl", ".psd", ".ico", ".ppm", ".pgm", ".dng", ".cr2", ".nef", ".arw"),)
"""Endings of other picture formats; these files are refused as such."""

STORED_FORMATS = ("JPEG", "PNG", "WEBP", "AVIF")
"""Formats that are stored in shards; pictures of other formats are encoded again."""
SUFFIXES = {name: ENDINGS[name][0][1:] for name in PICTURE_FORMATS}
"""Of a shard's members, by format."""

_BMP_HEADER_SIZES = frozenset(size.to_bytes(4, "little") for size in (12, 40, 52, 56, 64, 108, 124))
# In a run-length encoded one, four bytes skip 255 lines, each as long as it says: 25 GB of zeros.
_BMP_UNCOMPRESSED = (b"\0\0\0\0", b"\3\0\0\0")
_BEGINNINGS = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"8BPS": "PSD",
    b"\0\0\1\0": "ICO",
    b"%PDF": "PDF",
    b"%!PS": "PostScript",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
}
_BRANDS = {b"avif": "AVIF", b"avis": "AVIF", b"heic": "HEIC", b"heix": "HEIC"}
_MOST_BRANDS = 32


def format_of(data: bytes) -> str | None:
    """The format that the first bytes show, one of `PICTURE_FORMATS` or another; None if it is unknown."""
    for beginning, name in _BEGINNINGS.items():
        if data.startswith(beginning):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data.startswith(b"BM") and data[14:18] in _BMP_HEADER_SIZES:
        return "BMP" if data[14] == 12 or data[30:34] in _BMP_UNCOMPRESSED else "compressed BMP"
    if data[4:8] == b"ftyp":
        return _format_by_brand(data)
    return "SVG" if b"<svg" in data[:1024] else None


def _format_by_brand(data: bytes) -> str:
    """The format of an ISO media file: by its own brand, else by the first known brand that it is compatible with."""
    end = min(int.from_bytes(data[:4], "big"), 16 + 4 * _MOST_BRANDS)
    brands = [data[8:12], *(data[start : start + 4] for start in range(16, end, 4))]
    return next((_BRANDS[brand] for brand in brands if brand in _BRANDS), "a video, or a picture of another codec")
