"""Crop, resize and change a decoded picture at random, for training, to the square that the image tower sees, as uint8.

It crops, then resizes with torch's antialiased bicubic kernel on uint8, which agrees with Pillow's to a PSNR of 73 dB
and takes a fifth of the time; all else is done on the small square. Normalisation happens on the device, in the model.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate

from diptych.config.schema import DataConfig, ImageTowerConfig, RandomErasingConfig, RandomResizedCropConfig
from diptych.data.colour_jitter import grey, jitter_colours
from diptych.data.draws import Draws
from diptych.data.preprocessing import is_strip, preprocess, whole_in_square

Box = tuple[int, int, int, int]
"""left, top, width, height in pixels of the source picture."""

ATTEMPTS = 10
"""How often a rectangle is drawn until one fits into the picture, as in torchvision."""


def augment(pixels: np.ndarray, config: DataConfig, image: ImageTowerConfig, draws: Draws) -> np.ndarray:
    """u8[3, image_size, image_size]: a picture u8[height, width, 3] as it is trained on in one epoch.

    In memory the channels of a pixel lie together, as in the batch: the copy into it is then one of whole rows.
    """
    square = _square(pixels, config, image, draws)
    if draws.happens(config.horizontal_flip_probability):
        square = np.asarray(torch.from_numpy(square).flip(2))  # numpy takes ten times as long
    if draws.happens(config.colour_jitter.probability):
        square = jitter_colours(square, config.colour_jitter, draws)
    if draws.happens(config.grey_probability):
        square = grey(square)
    if draws.happens(config.random_erasing.probability):
        square = erase(square, config.random_erasing, draws)
    return square


def drawn_box(width: int, height: int, config: DataConfig, image: ImageTowerConfig, draws: Draws) -> Box:
    """The part of a picture that is trained on.

    With the same random numbers, that of a picture of another size is the same but for rounding.
    """
    if config.augmentation == "random_square_crop":
        return random_square(width, height, draws)
    if config.augmentation == "random_resized_crop":
        return random_rectangle(width, height, config.random_resized_crop, draws)
    return middle_square(width, height) if image.resize_mode == "shortest" else (0, 0, width, height)


def _square(pixels: np.ndarray, config: DataConfig, image: ImageTowerConfig, draws: Draws) -> np.ndarray:
    height, width, _ = pixels.shape
    if config.augmentation == "none" and image.resize_mode != "shortest":
        return _whole(pixels, image)
    box = drawn_box(width, height, config, image, draws)
    return crop_and_resize(pixels, box, (image.image_size, image.image_size), image.interpolation)


def _whole(pixels: np.ndarray, image: ImageTowerConfig) -> np.ndarray:
    """The whole picture, padded or squashed as in evaluation, but resized by the faster kernel."""
    height, width, _ = pixels.shape
    size = image.image_size
    if is_strip(width, height):  # torch might resize the shorter side first, to gigabytes
        return np.asarray(preprocess(Image.fromarray(pixels), image))
    columns, rows = whole_in_square(width, height, size) if image.resize_mode == "longest" else (size, size)
    left, top = (size - columns) // 2, (size - rows) // 2
    square: np.ndarray = np.empty((size, size, 3), dtype=np.uint8).transpose(2, 0, 1)
    square[:] = np.reshape(image.fill_colour, (3, 1, 1))
    whole = crop_and_resize(pixels, (0, 0, width, height), (columns, rows), image.interpolation)
    square[:, top : top + rows, left : left + columns] = whole
    return square


def middle_square(width: int, height: int) -> Box:
    side = min(height, width)
    return (width - side) // 2, (height - side) // 2, side, side


def random_square(width: int, height: int, draws: Draws) -> Box:
    """A random square as large as the shorter side, the paper's only augmentation (section 2.3)."""
    side = min(height, width)
    left = draws.below(width - side + 1)
    top = draws.below(height - side + 1)
    return left, top, side, side


def random_rectangle(width: int, height: int, config: RandomResizedCropConfig, draws: Draws) -> Box:
    """A random rectangle with a share of the picture's area, as torchvision's RandomResizedCrop draws it."""
    for _ in range(ATTEMPTS):
        columns, rows = _sides(width * height, config, draws)
        if 0 < columns <= width and 0 < rows <= height:
            left = draws.below(width - columns + 1)
            top = draws.below(height - rows + 1)
            return left, top, columns, rows
    # As much of the middle as the ratios allow. A picture of 3:2 always gets it with open_clip's scale and ratio.
    narrowest, widest = config.ratio
    columns = max(1, round(height * widest)) if width / height > widest else width
    rows = max(1, round(width / narrowest)) if width / height < narrowest else height
    return (width - columns) // 2, (height - rows) // 2, columns, rows


def erase(square: np.ndarray, config: RandomErasingConfig, draws: Draws) -> np.ndarray:
    """Fill random rectangles of u8[3, size, size] with noise (arXiv 1708.04896); return a new array.

    With several rectangles each gets its part of the area, as in timm, whose random erasing open_clip uses.
    """
    square = square.copy(order="K")
    _, height, width = square.shape
    number = 1 + draws.below(config.max_rectangles)
    for _ in range(number):
        for _ in range(ATTEMPTS):
            rows, columns = _sides(width * height / number, config, draws)
            if columns < width and rows < height:
                top, left = draws.below(height - rows + 1), draws.below(width - columns + 1)
                noise = draws.bytes(3 * rows * columns).reshape(3, rows, columns)
                square[:, top : top + rows, left : left + columns] = noise
                break
    return square


def crop_and_resize(
    pixels: np.ndarray, box: Box, resized: tuple[int, int], interpolation: Literal["bicubic", "bilinear"] = "bicubic"
) -> np.ndarray:
    """Resize a box of u8[height, width, 3] with an antialiased kernel to a width and a height: u8[3, height, width]."""
    left, top, width, height = box
    crop: np.ndarray = pixels[top : top + height, left : left + width]
    if (width, height) != resized:
        # With these strides, the first of which is a whole picture, the kernel takes and gives pixels as they lie here;
        # with others it takes planes apart and puts them together again.
        channels_first = torch.from_numpy(np.ascontiguousarray(crop)).view(1, height, width, 3).permute(0, 3, 1, 2)
        return np.asarray(interpolate(channels_first, size=resized[::-1], mode=interpolation, antialias=True)[0])
    channels_first_view: np.ndarray = crop.transpose(2, 0, 1)
    return channels_first_view


def _sides(area: float, config: RandomResizedCropConfig | RandomErasingConfig, draws: Draws) -> tuple[int, int]:
    """The sides of a rectangle with a random share of the area and a random ratio of the first side to the second."""
    area *= draws.uniform(*config.scale)
    ratio = math.exp(draws.uniform(*map(math.log, config.ratio)))
    return round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
