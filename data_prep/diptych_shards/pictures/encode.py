"""From pixels to the bytes of a stored picture."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image

from diptych.data.jpeg_segments import with_exif
from diptych.data.picture_formats import STORED_FORMATS, SUFFIXES
from diptych.data.picture_safety import PictureError, PictureReason
from diptych_shards.pictures.four_bytes import four_of

ENCODINGS = {SUFFIXES[name]: name for name in STORED_FORMATS}
"""Formats that a picture can be stored in, by the suffix of what is written."""
DEFAULT_QUALITY = 95
DEFAULT_PNG_COMPRESSION = 6


def encode(pixels: np.ndarray, suffix: str, quality: int, *, subsampling: str, exif: bytes | None) -> bytes:
    """u8[height, width, 3] as `jpg` (baseline), `png`, `webp` or `avif`; `exif` as in a TIFF file.

    Raises:
        PictureError: if the format cannot hold the picture.
    """
    try:
        if suffix == "jpg":
            four_bytes = four_of(pixels)
            held, colours = (pixels, "RGB") if four_bytes is None else (four_bytes, "RGBX")
            data = simplejpeg.encode_jpeg(np.ascontiguousarray(held), quality, colours, subsampling)
            return data if exif is None else with_exif(data, exif)
        return _encode_with_pillow(pixels, suffix, quality, exif)
    except (OSError, ValueError, RuntimeError) as error:  # every format has a longest side
        height, width = pixels.shape[:2]
        detail = f"{width} x {height} pixels cannot be written as {suffix}: {error}"
        raise PictureError(PictureReason.ENCODE_ERROR, detail) from error


def _encode_with_pillow(pixels: np.ndarray, suffix: str, quality: int, exif: bytes | None) -> bytes:
    options: dict[str, Any] = {
        "png": {"compress_level": quality},
        "webp": {"quality": quality},
        "avif": {"quality": quality, "max_threads": 1},
    }[suffix]
    if exif is not None:
        options["exif"] = b"Exif\0\0" + exif
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, ENCODINGS[suffix], **options)
    return file.getvalue()
