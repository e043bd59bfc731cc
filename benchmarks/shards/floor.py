"""What fetching and writing cannot save: decoding, resizing and encoding alone, with what this package uses."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from benchmarks.shards.pictures import Picture

from diptych_shards.build.decode import open_file
from diptych_shards.build.encode import encode
from diptych_shards.build.picture import PictureOptions, process_picture
from diptych_shards.build.resize import resize, resized_size


def floors(pictures: list[Picture], size: int, quality: int) -> dict[str, float]:
    """Milliseconds of processor for a picture, in one thread: with full decoding, as ours decodes, and fast."""

    def full(data: bytes) -> None:
        file = open_file(data, max_pixels=options.max_pixels)
        pixels, _ = file.decode()
        resized = resized_size((file.width, file.height), options.resize_mode, size, only_if_bigger=False)
        assert resized is not None
        encode(np.asarray(resize(pixels, resized)), "jpg", quality, subsampling=options.subsampling, exif=None)

    options = PictureOptions(image_size=size, resize_mode="keep_ratio", encode_quality=quality)
    fast = PictureOptions(image_size=size, resize_mode="keep_ratio", encode_quality=quality, fast_decode=True)
    return {
        "full": _milliseconds(full, pictures),
        "ours": _milliseconds(lambda data: process_picture(data, options), pictures),
        "fast": _milliseconds(lambda data: process_picture(data, fast), pictures),
    }


def _milliseconds(work: Callable[[bytes], object], pictures: list[Picture]) -> float:
    start = time.process_time()
    for picture in pictures:
        work(picture.data)
    return round(1e3 * (time.process_time() - start) / len(pictures), 2)
