"""From pixels to the bytes of a stored picture."""

from __future__ import annotations

import io
from typing import Any

from PIL import Image

from diptych.data.jpeg_segments import fits_segment
from diptych.data.picture_formats import STORED_FORMATS, SUFFIXES
from diptych.data.picture_safety import PictureError, PictureReason

ENCODINGS = {SUFFIXES[name]: name for name in STORED_FORMATS}
"""Formats that a picture can be stored in, by the suffix of what is written."""
DEFAULT_QUALITY = 95
DEFAULT_PNG_COMPRESSION = 6
_SUBSAMPLINGS = {"420": "4:2:0", "422": "4:2:2", "444": "4:4:4"}


def encode(picture: Image.Image, suffix: str, quality: int, *, subsampling: str, exif: bytes | None) -> bytes:
    """The picture (RGB) as `jpg` (baseline), `png`, `webp` or `avif`; `exif` as in a TIFF file.

    Raises:
        PictureError: if the format cannot hold the picture.
    """
    options: dict[str, Any] = {
        "jpg": {"quality": quality, "subsampling": _SUBSAMPLINGS[subsampling]},
        "png": {"compress_level": quality},
        "webp": {"quality": quality},
        "avif": {"quality": quality, "max_threads": 1},
    }[suffix]
    if exif is not None and (suffix != "jpg" or fits_segment(exif)):
        options["exif"] = b"Exif\0\0" + exif
    file = io.BytesIO()
    try:
        picture.save(file, ENCODINGS[suffix], **options)
    except (OSError, ValueError, RuntimeError) as error:  # every format has a longest side
        detail = f"{picture.width} x {picture.height} pixels cannot be written as {suffix}: {error}"
        raise PictureError(PictureReason.ENCODE_ERROR, detail) from error
    return file.getvalue()
