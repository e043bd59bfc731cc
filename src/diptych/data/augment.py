"""Crop and resize a decoded picture for training to the square that the image tower sees, as uint8.

It crops, then resizes with torch's antialiased bicubic kernel on uint8, which agrees with Pillow's to a PSNR of 73 dB
and takes a fifth of the time. Normalisation happens on the device, in the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch.nn.functional import interpolate

from diptych.data.draws import Draws

Box = tuple[int, int, int, int]
"""left, top, width, height in pixels of the source picture."""


def middle_square(pixels: np.ndarray, size: int) -> np.ndarray:
    """u8[3, size, size]: the middle square of u8[height, width, 3], resized as in training."""
    height, width, _ = pixels.shape
    side = min(height, width)
    return crop_and_resize(pixels, ((width - side) // 2, (height - side) // 2, side, side), size)


def random_square_crop(pixels: np.ndarray, size: int, draws: Draws) -> np.ndarray:
    """u8[3, size, size]: a random square as large as the shorter side, the paper's only augmentation (section 2.3)."""
    height, width, _ = pixels.shape
    side = min(height, width)
    left = draws.below(width - side + 1)
    top = draws.below(height - side + 1)
    return crop_and_resize(pixels, (left, top, side, side), size)


def random_resized_crop(pixels: np.ndarray, size: int, draws: Draws) -> np.ndarray:
    """u8[3, size, size]: open_clip's training crop, 90-100 % of the area at an aspect ratio of 3/4 to 4/3."""
    height, width, _ = pixels.shape
    for _ in range(10):
        area = width * height * draws.uniform(0.9, 1.0)
        ratio = math.exp(draws.uniform(math.log(3 / 4), math.log(4 / 3)))
        columns, rows = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < columns <= width and 0 < rows <= height:
            left = draws.below(width - columns + 1)
            top = draws.below(height - rows + 1)
            return crop_and_resize(pixels, (left, top, columns, rows), size)
    return middle_square(pixels, size)


def without_augmentation(pixels: np.ndarray, size: int, draws: Draws) -> np.ndarray:
    """The middle square of the picture; has the same signature as the random crops."""
    return middle_square(pixels, size)


AUGMENTATIONS: dict[str, Callable[[np.ndarray, int, Draws], np.ndarray]] = {
    "random_square_crop": random_square_crop,
    "random_resized_crop": random_resized_crop,
    "none": without_augmentation,
}


def crop_and_resize(pixels: np.ndarray, box: Box, size: int) -> np.ndarray:
    """Resize a box of u8[height, width, 3] to u8[3, size, size] with the antialiased bicubic kernel."""
    left, top, width, height = box
    crop: np.ndarray = pixels[top : top + height, left : left + width]
    if (width, height) != (size, size):
        # The fast kernel takes a permuted view of height, width, channel. Whole rows are copied faster here than there.
        channels_first = torch.from_numpy(np.ascontiguousarray(crop)[None]).permute(0, 3, 1, 2)
        return np.asarray(interpolate(channels_first, size=(size, size), mode="bicubic", antialias=True)[0])
    channels_first_view: np.ndarray = crop.transpose(2, 0, 1)
    return channels_first_view
