"""Make small copies of pictures, encoded again so that nothing but the picture gets into a page."""

from __future__ import annotations

import base64
import io

from PIL import Image


def thumbnail_uri(picture: Image.Image, longer_side: int) -> str:
    """The picture as a data: URI, at most that many pixels wide and high."""
    # Bare pixels, without the metadata that Pillow would carry into the new file.
    small = Image.frombytes(picture.mode, picture.size, picture.tobytes()).convert("RGB")
    small.thumbnail((longer_side, longer_side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    small.save(file, "WEBP", quality=80, method=4)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode("ascii")
