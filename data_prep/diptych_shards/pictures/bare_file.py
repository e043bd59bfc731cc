"""The file of a picture without what is no part of the picture: metadata, and bytes behind its end.

A file that is stored as it came could carry where its owner lives (GPS), a thumbnail of what was blurred, or an archive
(polyglots). So nothing is kept but the segments that a decoder needs, byte for byte.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

from diptych.data.jpeg_segments import JpegStructureError, without_metadata

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def bare_file(data: bytes, format: str) -> bytes | None:
    """The bare file of a `JPEG`, `PNG` or `WEBP` that decodes whole, to the same pixels as long as it has neither
    transparency nor several frames nor a profile; None if that cannot be had without encoding it anew.
    """
    if format not in _STRIPPED:
        return None
    try:
        return _STRIPPED[format](data)
    except _StructureError:
        return None


_StructureError = (JpegStructureError, IndexError)


def _bare_png(data: bytes) -> bytes:
    kept = [_PNG_SIGNATURE]
    position = len(_PNG_SIGNATURE)
    while True:
        end = position + 12 + int.from_bytes(data[position : position + 4], "big")
        name = data[position + 4 : position + 8]
        if end > len(data):
            raise IndexError("the last chunk is cut")
        if name in (b"IHDR", b"PLTE", b"IDAT", b"IEND"):
            if zlib.crc32(data[position + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
                raise IndexError("a checksum that other decoders would refuse")
            kept.append(data[position:end])
        if name == b"IEND":
            return b"".join(kept)
        position = end


def _bare_webp(data: bytes) -> bytes:
    position = 12
    while position + 8 <= len(data):
        length = int.from_bytes(data[position + 4 : position + 8], "little")
        chunk = data[position : position + 8 + length + length % 2]
        if chunk[:4] in (b"VP8 ", b"VP8L"):
            return b"RIFF" + (4 + len(chunk)).to_bytes(4, "little") + b"WEBP" + chunk
        position += len(chunk)
    raise IndexError("no picture chunk")


_STRIPPED: dict[str, Callable[[bytes], bytes]] = {"JPEG": without_metadata, "PNG": _bare_png, "WEBP": _bare_webp}
