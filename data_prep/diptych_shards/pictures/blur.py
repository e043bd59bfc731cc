"""Blur boxes (faces, number plates) so strongly that nobody recognises their contents."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from diptych.data.picture_safety import PictureError, PictureReason
from diptych.terminal import printable

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, as fractions of the picture's width and height."""

_GROWTH = 0.1
"""How much a box grows on each side, as a fraction of its longer side; the same as img2dataset's."""
_DEVIATION = 0.1
"""The Gaussian's standard deviation, as a fraction of the longer side."""


def read_boxes(rows: Sequence[Sequence[Any]]) -> list[Box]:
    """Read the boxes of a table's cell: cut to the picture, without those of no area.

    Raises:
        PictureError: if a box is not four finite numbers, as the picture must not be stored without its blur.
    """
    boxes = []
    for row in rows:
        try:
            left, top, right, bottom = (float(number) for number in row)
            if not np.isfinite([left, top, right, bottom]).all():
                raise ValueError
        except (TypeError, ValueError):
            said = f"{printable(str(row), 80)} is not a box of four numbers"
            raise PictureError(PictureReason.BAD_BOX, said) from None
        left, top, right, bottom = (min(max(number, 0.0), 1.0) for number in (left, top, right, bottom))
        if left < right and top < bottom:
            boxes.append((left, top, right, bottom))
    return boxes


def upright_box(box: Box, orientation: int) -> Box:
    """The same box on the picture after it is turned by EXIF's orientation (1 to 8)."""
    left, top, right, bottom = box
    if orientation >= 5:
        left, top, right, bottom = top, left, bottom, right
    if orientation in (3, 4, 7, 8):
        top, bottom = 1 - bottom, 1 - top
    if orientation in (2, 3, 6, 7):
        left, right = 1 - right, 1 - left
    return left, top, right, bottom


def blur(picture: Image.Image, boxes: Sequence[Box]) -> Image.Image:
    """A copy of the picture (RGB) with the boxes blurred, each by a Gaussian of its own size, with soft edges."""
    width, height = picture.size
    blurred = picture.copy()
    for left, top, right, bottom in boxes:
        left, top, right, bottom = left * width, top * height, right * width, bottom * height
        side = max(right - left, bottom - top)
        growth, deviation = _GROWTH * side, _DEVIATION * side
        # One mask for all boxes, softened by the largest one's Gaussian, would leave the small ones sharp.
        grown = _pixel_box(left - growth, top - growth, right + growth, bottom + growth, picture.size)
        reach = growth + 3 * deviation
        around = _pixel_box(left - reach, top - reach, right + reach, bottom + reach, picture.size)
        mask = Image.new("L", (around[2] - around[0], around[3] - around[1]))
        mask.paste(255, (grown[0] - around[0], grown[1] - around[1], grown[2] - around[0], grown[3] - around[1]))
        faded = mask.filter(ImageFilter.GaussianBlur(growth / 2))
        blurred.paste(blurred.crop(around).filter(ImageFilter.GaussianBlur(deviation)), around, faded)
    return blurred


def _pixel_box(
    left: float, top: float, right: float, bottom: float, size: tuple[int, int]
) -> tuple[int, int, int, int]:
    """The smallest box of whole pixels around one, cut to the picture."""
    return (
        max(math.floor(left), 0), max(math.floor(top), 0),
        min(math.ceil(right), size[0]), min(math.ceil(bottom), size[1]),
    )  # fmt: skip
