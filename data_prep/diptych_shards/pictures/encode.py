"""Encode a picture for storage."""

from __future__ import annotations

import io
from typing import Any

from PIL import Image

from diptych.data.picture_formats import STORED_FORMATS, SUFFIXES
from diptych.data.picture_safety import PictureError, PictureReason

ENCODINGS = {SUFFIXES[name]: name for name in STORED_FORMATS}
"""Formats that a picture can be stored in, by file suffix."""
DEFAULT_QUALITY = 95
DEFAULT_PNG_COMPRESSION = 6


def encode(picture: Image.Image, suffix: str, quality: int) -> bytes:
    """Encode a picture (RGB) as `jpg` (baseline), `png`, `webp` or `avif`.

    Raises:
        PictureError: if the format cannot store the picture.
    """
    options_of: dict[str, dict[str, Any]] = {
        "jpg": {"quality": quality, "subsampling": "4:2:0"},
        "png": {"compress_level": quality},
        "webp": {"quality": quality},
        "avif": {"quality": quality, "max_threads": 1},
    }
    file = io.BytesIO()
    try:
        picture.save(file, ENCODINGS[suffix], **options_of[suffix])
    except (OSError, ValueError, RuntimeError) as error:  # every format has a longest side
        detail = f"{picture.width} x {picture.height} pixels cannot be written as {suffix}: {error}"
        raise PictureError(PictureReason.ENCODE_ERROR, detail) from error
    return file.getvalue()
