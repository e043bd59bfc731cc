"""Decode a picture from an untrusted source to an array of pixels, as fast as safety allows.

The pixels and the refusals are those of `picture_safety.open_picture`. A usual JPEG is decoded by simplejpeg, whose
libjpeg-turbo is Pillow's too, so the pixels are equal bit by bit; everything else goes through `open_picture`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import simplejpeg

from diptych.data.colour_profile import is_srgb
from diptych.data.exif import exif_orientation
from diptych.data.jpeg_segments import JpegHeader, JpegStructureError, read_header
from diptych.data.picture_formats import MAX_PIXELS
from diptych.data.picture_safety import check_scans, open_picture

SCALES = (8, 4, 2)
"""libjpeg decodes to these fractions of the size in a fraction of the time."""

TimesAsLarge = Callable[[int, int], float]


def open_pixels(data: bytes, *, max_pixels: int = MAX_PIXELS, times_as_large: TimesAsLarge | None = None) -> np.ndarray:
    """u8[height, width, 3]: the picture in RGB, upright, in sRGB.

    times_as_large: (width, height) → how many times as large as needed the picture is. A usual JPEG is then decoded at
        1/2, 1/4 or 1/8 of its size if that is still as large as needed.

    Raises:
        PictureError: as `open_picture` does.
    """
    pixels = _decoded(data, max_pixels, times_as_large) if data.startswith(b"\xff\xd8\xff") else None
    return np.array(open_picture(data, max_pixels=max_pixels)) if pixels is None else pixels


def _decoded(data: bytes, max_pixels: int, times_as_large: TimesAsLarge | None) -> np.ndarray | None:
    """The pixels of a JPEG that needs no work but decoding; None for every other one, and for one that is not whole."""
    try:
        header = read_header(data)
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        is_usual = colours == "YCbCr" or (colours == "Gray" and not header.profile)
        if width * height > max_pixels or not is_usual or not _is_upright_srgb(header):
            return None
        if header.has_many_scans:
            check_scans(data, width * height)
        least = (0, 0)  # the whole size
        if times_as_large is not None and (times := times_as_large(width, height)) >= SCALES[-1]:
            scale = next(scale for scale in SCALES if scale <= times)
            least = -(-height // scale), -(-width // scale)
        # strict: what libjpeg only warns of is an error here, and then Pillow decides.
        pixels: np.ndarray = simplejpeg.decode_jpeg(
            data, "RGB", fastdct=False, fastupsample=False, min_height=least[0], min_width=least[1], strict=True
        )
    except (ValueError, JpegStructureError):
        return None
    return pixels if data.rfind(b"\xff\xd9") >= 0 else None


def _is_upright_srgb(header: JpegHeader) -> bool:
    if len(header.exif) > 1 or len(header.profile) > 1:
        return False
    return all(exif_orientation(exif) == 1 for exif in header.exif) and all(map(is_srgb, header.profile))
