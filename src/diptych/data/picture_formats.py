"""Which pictures are read and stored: their formats, the endings of their names, their largest size.

One table for every reader and every writer, so that nothing is stored which another part refuses.
"""

from __future__ import annotations

MAX_PIXELS = 100_000_000
"""Of a picture that is decoded or stored, anywhere; decoding takes ten bytes a pixel at its peak. A writer may be asked
for less, never for more.
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
"""Of file names, by format. The content decides which format a file has; the ending, whether it is a picture's."""
PICTURE_FORMATS = tuple(ENDINGS)
"""What is read. Where a decoder is missing (HEIC needs an extra), such a picture is refused with the way to get it."""
PICTURE_ENDINGS = tuple(ending for endings in ENDINGS.values() for ending in endings)
UNREAD_ENDINGS = (*(".svg", ".jp2", ".jxl", ".psd", ".ico", ".ppm", ".pgm", ".dng", ".cr2", ".nef", ".arw"),)
"""Of pictures in other formats, which are refused as such."""

STORED_FORMATS = ("JPEG", "PNG", "WEBP", "AVIF")
"""What is stored in shards; what comes in another format is encoded again."""
SUFFIXES = {name: ENDINGS[name][0][1:] for name in PICTURE_FORMATS}
"""Of a member of a shard, by its format."""

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
    """The format that the file's first bytes have, one of `PICTURE_FORMATS` or another; None if they have none."""
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
    """Of an ISO media file: its own brand, else the first known one of those it is compatible with."""
    end = min(int.from_bytes(data[:4], "big"), 16 + 4 * _MOST_BRANDS)
    brands = [data[8:12], *(data[start : start + 4] for start in range(16, end, 4))]
    return next((_BRANDS[brand] for brand in brands if brand in _BRANDS), "a video, or a picture of another codec")
