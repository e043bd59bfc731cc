"""Remove the metadata of a picture's file, and the bytes after its end.

A file that is stored as it came could contain where its owner lives (GPS), a thumbnail of what was blurred, or an
archive. So only the parts that a decoder needs are kept, byte for byte.
"""

from __future__ import annotations

from collections.abc import Callable

from diptych.data import jpeg_segments, png_chunks


def strip_metadata(data: bytes, format: str) -> bytes | None:
    """Remove all but the pixels from a `JPEG`, `PNG` or `WEBP` that decodes whole.

    The pixels stay the same if the picture has no transparency, one frame and no profile. None if the file has another
    format or a flaw that other readers refuse.
    """
    strip = _STRIP.get(format)
    try:
        return None if strip is None else strip(data)
    except (jpeg_segments.JpegStructureError, png_chunks.PngStructureError):
        return None


def _webp_frame(data: bytes) -> bytes | None:
    position = 12
    while position + 8 <= len(data):
        length = int.from_bytes(data[position + 4 : position + 8], "little")
        chunk = data[position : position + 8 + length + length % 2]
        if chunk[:4] in (b"VP8 ", b"VP8L"):
            return b"RIFF" + (4 + len(chunk)).to_bytes(4, "little") + b"WEBP" + chunk
        position += len(chunk)
    return None


_STRIP: dict[str, Callable[[bytes], bytes | None]] = {
    "JPEG": jpeg_segments.without_metadata,
    "PNG": png_chunks.without_metadata,
    "WEBP": _webp_frame,
}
