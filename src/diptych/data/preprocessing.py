"""Prepare a picture for evaluation: resize and crop it to the square that the image tower sees, as uint8.

The pixels are those of CLIP: Pillow resizes, then the middle is cropped. Normalisation happens on the device, in the
model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

LONGEST_STRIP = 16
"""The largest ratio of longer to shorter side at which a picture is resized as a whole; a thinner one would become
gigabytes."""


def centre_crop(picture: Image.Image, size: int) -> Tensor:
    """Resize the shorter side to `size` and crop the middle to u8[3, size, size], as OpenAI and open_clip evaluate.

    The rounding is theirs too: torchvision truncates the longer side and rounds the corner of the crop half to even.
    """
    width, height = picture.size
    shorter, longer = sorted(picture.size)
    resized = int(size * width / shorter), int(size * height / shorter)
    if longer > LONGEST_STRIP * shorter:
        crop = _crop_of_a_strip(picture, resized, size)
    else:
        left, top = (round((length - size) / 2) for length in resized)
        whole = picture.resize(resized, Image.Resampling.BICUBIC)
        crop = whole.crop((left, top, left + size, top + size))
    return torch.from_numpy(np.array(crop)).permute(2, 0, 1)


def _crop_of_a_strip(picture: Image.Image, resized: tuple[int, int], size: int) -> Image.Image:
    """The middle of the resized picture, computed by resizing only the part that the crop shows.

    It is resized in one direction at a time. Pillow 13 chooses which direction comes first by the shape, and the part
    has another shape than the picture, so a value can differ by a few levels from that of the whole picture.
    """
    columns, rows = (_resampled(length, new, size) for length, new in zip(picture.size, resized, strict=True))
    crop = picture.crop((columns.first, rows.first, columns.stop, rows.stop))
    crop = crop.resize((size, crop.height), Image.Resampling.BICUBIC, box=(columns.begin, 0, columns.end, crop.height))
    return crop.resize((size, size), Image.Resampling.BICUBIC, box=(0, rows.begin, size, rows.end))


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
    reach = 2 * max(1.0, scale) + 1  # the bicubic kernel's reach, and one pixel for rounding
    first, stop = max(0, math.floor(begin - reach)), min(length, math.ceil(end + reach))
    return _Resampled(first, stop, begin - first, min(end - first, stop - first))
