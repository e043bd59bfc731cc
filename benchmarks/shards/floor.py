"""Measure decoding, resizing and encoding alone: what no improvement of fetching and writing can save."""

from __future__ import annotations

import time
from collections.abc import Callable

from benchmarks.shards.pictures import Picture

from diptych.data.picture_safety import PictureFile
from diptych_shards.pictures.encode import encode
from diptych_shards.pictures.picture import PictureOptions, process_picture
from diptych_shards.pictures.resize import resize, resized_size

REPETITIONS = 2
"""The quicker one counts, since the other may have been disturbed."""


def floors(pictures: list[Picture], size: int, quality: int) -> dict[str, float]:
    """Processor milliseconds per picture, in one thread: with full decoding, and with ours."""

    def full(data: bytes) -> None:
        file = PictureFile(data, max_pixels=options.max_pixels)
        picture, _ = file.decode()
        resized = resized_size((file.width, file.height), options.resize_mode, size, only_if_bigger=False)
        assert resized is not None
        encode(resize(picture, resized), "jpg", quality)

    options = PictureOptions(image_size=size, resize_mode="keep_ratio", encode_quality=quality)
    works: dict[str, Callable[[bytes], object]] = {
        "full": full,
        "ours": lambda data: process_picture(data, options),
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
