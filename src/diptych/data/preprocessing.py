"""Prepare a picture for evaluation: make it the square that the image tower sees, as uint8.

The pixels are those of open_clip's `image_transform_v2`, since a checkpoint's results depend on them: Pillow resizes,
before anything is cropped. Normalisation happens on the device, in the model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diptych.config.schema import ImageTowerConfig

LONGEST_STRIP = 16
"""The largest ratio of longer to shorter side at which a picture is resized as a whole; a thinner one would become
gigabytes."""


RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def preprocess(picture: Image.Image, config: ImageTowerConfig) -> Tensor:
    """u8[3, image_size, image_size]: a picture in RGB as open_clip's evaluation shows it to the tower."""
    size, kernel = config.image_size, RESAMPLING[config.interpolation]
    if config.resize_mode == "shortest":
        square = _centre_crop(picture, size, kernel)
    elif config.resize_mode == "longest":
        square = Image.new("RGB", (size, size), config.fill_colour)
        columns, rows = whole_in_square(*picture.size, size)
        square.paste(picture.resize((columns, rows), kernel), ((size - columns) // 2, (size - rows) // 2))
    else:
        if is_strip(*picture.size):  # Pillow might resize the shorter side first
            picture = picture.resize((min(picture.width, size), min(picture.height, size)), kernel)
        square = picture.resize((size, size), kernel)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1)


def is_strip(width: int, height: int) -> bool:
    return max(width, height) > LONGEST_STRIP * min(width, height)


def whole_in_square(width: int, height: int, size: int) -> tuple[int, int]:
    """Width and height of a picture whose longer side is resized to `size`."""
    ratio = max(width / size, height / size)
    return max(1, round(width / ratio)), max(1, round(height / ratio))


def _centre_crop(picture: Image.Image, size: int, kernel: Image.Resampling) -> Image.Image:
    """Resize the shorter side to `size` and crop the middle.

    The rounding is CLIP's too: torchvision truncates the longer side and rounds the corner of the crop half to even.
    """
    width, height = picture.size
    shorter = min(picture.size)
    resized = int(size * width / shorter), int(size * height / shorter)
    if is_strip(width, height):
        return _crop_of_a_strip(picture, resized, size, kernel)
    left, top = (round((length - size) / 2) for length in resized)
    return picture.resize(resized, kernel).crop((left, top, left + size, top + size))


def _crop_of_a_strip(
    picture: Image.Image, resized: tuple[int, int], size: int, kernel: Image.Resampling
) -> Image.Image:
    """The middle of the resized picture, computed by resizing only the part that the crop shows.

    It is resized in one direction at a time. Pillow 13 chooses which direction comes first by the shape, and the part
    has another shape than the picture, so a value can differ by a few levels from that of the whole picture.
    """
    columns, rows = (_resampled(length, new, size) for length, new in zip(picture.size, resized, strict=True))
    crop = picture.crop((columns.first, rows.first, columns.stop, rows.stop))
    crop = crop.resize((size, crop.height), kernel, box=(columns.begin, 0, columns.end, crop.height))
    return crop.resize((size, size), kernel, box=(0, rows.begin, size, rows.end))


@dataclass(frozen=True)
class _Resampled:
    """The pixels of the source, along one side, that a crop of the resized picture is computed from."""

    first: int
    stop: int
    """The source pixels [first, stop) that the kernel reaches."""
    begin: float
    end: float
    """The edges of the crop in source pixels, counted from `first`."""


def _resampled(length: int, resized: int, size: int) -> _Resampled:
    """The source of the middle `size` pixels of a side that is resized from `length` to `resized` pixels."""
    scale = length / resized
    corner = round((resized - size) / 2)
    begin, end = corner * scale, (corner + size) * scale
    reach = 2 * max(1.0, scale) + 1  # the bicubic kernel's reach, the larger of the two, and one pixel for rounding
    first, stop = max(0, math.floor(begin - reach)), min(length, math.ceil(end + reach))
    return _Resampled(first, stop, begin - first, min(end - first, stop - first))
