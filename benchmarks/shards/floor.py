"""What nobody can save: decoding, resizing and encoding alone, with what this package uses, in one thread."""

from __future__ import annotations

import io
import time

import numpy as np
import simplejpeg
from benchmarks.shards.pictures import Picture
from PIL import Image

from diptych_shards.build.resize import resize


def floor_milliseconds(pictures: list[Picture], size: int, quality: int) -> float:
    """Of processor, for a picture."""
    start = time.process_time()
    for picture in pictures:
        scale = size / min(picture.width, picture.height)
        pixels = resize(_decode(picture), (round(picture.width * scale), round(picture.height * scale)))
        simplejpeg.encode_jpeg(pixels, quality, "RGB", "420")
    return round(1e3 * (time.process_time() - start) / len(pictures), 2)


def _decode(picture: Picture) -> np.ndarray | Image.Image:
    if picture.suffix == "jpg":
        return simplejpeg.decode_jpeg(picture.data)
    return Image.open(io.BytesIO(picture.data)).convert("RGB")
