"""What fetching and writing cannot save: decoding, resizing and encoding alone, with what this package uses."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from benchmarks.shards.pictures import Picture

from diptych_shards.pictures.decode import open_file
from diptych_shards.pictures.encode import encode
from diptych_shards.pictures.picture import PictureOptions, process_picture
from diptych_shards.pictures.resize import resize, resized_size

REPETITIONS = 2
"""The quicker one counts, as the other may have been disturbed."""


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
    works: dict[str, Callable[[bytes], object]] = {
        "full": full,
        "ours": lambda data: process_picture(data, options),
        "fast": lambda data: process_picture(data, fast),
    }
    seconds = dict.fromkeys(works, 0.0)
    for picture in pictures:
        for name, work in works.items():
            seconds[name] += min(_seconds(work, picture.data) for _ in range(REPETITIONS))
    return {name: round(1e3 * spent / len(pictures), 2) for name, spent in seconds.items()}


def _seconds(work: Callable[[bytes], object], data: bytes) -> float:
    start = time.process_time()
    work(data)
    return time.process_time() - start
