"""The chunks of a PNG: the picture without its metadata, and what Pillow makes wrong of some.

Pillow refuses much text, and misses transparent colours ("colour keys") of other depths than 8 bits.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageFile, PngImagePlugin

from diptych.data.colour_profile import MAX_PROFILE_BYTES

_SIGNATURE_BYTES = 8
_TEXT = (b"tEXt", b"zTXt", b"iTXt")
_NEEDED = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
_MOST_CHUNKS = 1_000_000
_GREY, _COLOUR = 0, 2

PngImagePlugin.MAX_TEXT_CHUNK = MAX_PROFILE_BYTES  # of profiles too; no text gets there


class PngStructureError(ValueError):
    """The chunks do not lead to an end, or one is damaged."""


def without_text(data: bytes) -> bytes:
    """The PNG without texts (workflows, XMP), and without a profile that is too large when unpacked."""
    kept, start = [], 0
    for name, position, end in _chunks(data):
        if name in _TEXT or name == b"iCCP" and _is_too_large(data[position + 8 : end - 4]):
            kept.append(data[start:position])
            start = end
    return data if start == 0 else b"".join([*kept, data[start:]])


def without_metadata(data: bytes) -> bytes:
    """The PNG with its header, palette, pixels and end alone.

    Raises:
        PngStructureError: if there is no end, or if a chunk of these has a wrong checksum.
    """
    kept = [data[:_SIGNATURE_BYTES]]
    for name, position, end in _chunks(data):
        if name in _NEEDED:
            if zlib.crc32(data[position + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
                raise PngStructureError("a checksum that other decoders would refuse")
            kept.append(data[position:end])
        if name == b"IEND":
            return b"".join(kept)
    raise PngStructureError("no end")


def with_colour_key(picture: ImageFile.ImageFile, data: bytes) -> Image.Image:
    """The loaded picture of a PNG, with an alpha channel if Pillow would miss its transparent colour."""
    key = picture.info.get("transparency")
    bits, colours = data[24], data[25]
    if key is None or bits == 8 or colours not in (_GREY, _COLOUR):
        return picture
    if colours == _COLOUR:
        seen: Image.Image = picture.copy()
        is_key = (_deep(data, picture) == key).all(axis=2)
    elif bits == 16:
        values = np.asarray(picture).astype(np.int64)
        seen = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
        is_key = values == key
    else:
        seen = picture.convert("L")
        is_key = np.asarray(seen) == key * (255 // (2**bits - 1))
    seen.putalpha(Image.fromarray(np.where(is_key, 0, 255).astype(np.uint8)))
    seen.info = {name: value for name, value in picture.info.items() if name != "transparency"}
    return seen


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Name, start and end of each chunk, in order, up to the end of the picture or the first chunk that is cut."""
    position = _SIGNATURE_BYTES
    for _ in range(_MOST_CHUNKS):
        end = position + 12 + int.from_bytes(data[position : position + 4], "big")
        name = data[position + 4 : position + 8]
        if end > len(data):
            return
        yield name, position, end
        if name == b"IEND":
            return
        position = end


def _is_too_large(profile: bytes) -> bool:
    """Whether a profile exceeds the limit when unpacked, or cannot be unpacked."""
    _, _, packed = profile.partition(b"\0")
    try:
        return len(zlib.decompressobj().decompress(packed[1:], MAX_PROFILE_BYTES + 1)) > MAX_PROFILE_BYTES
    except zlib.error:
        return True


def _deep(data: bytes, picture: ImageFile.ImageFile) -> np.ndarray:
    """u16[height, width, 3] of a PNG of 16 bits in colour, of which the loaded picture has the upper bytes."""
    lower = PngImagePlugin.PngImageFile(io.BytesIO(without_text(data)))
    # Read as if the lower byte came first: Pillow then keeps the other one.
    lower.tile = [tile._replace(args="RGB;16L") for tile in lower.tile]
    lower.load()
    deep: np.ndarray = np.asarray(picture).astype(np.uint16) << 8 | np.asarray(lower)
    return deep
