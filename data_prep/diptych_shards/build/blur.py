"""Blurring of boxes (faces, number plates), so strong that nobody recognises what they held."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from diptych.data.picture_safety import PictureError, PictureReason

Box = tuple[float, float, float, float]
"""left, top, right, bottom as fractions of the picture's width and height."""

_GROWTH = 0.1
"""Of the longer side, on every side, as img2dataset grows them."""
_RADIUS = 0.1
"""Of the longest side of all boxes: the standard deviation, in pixels."""


def read_boxes(rows: Sequence[Sequence[Any]]) -> list[Box]:
    """The boxes of a table's cell, cut to the picture; those without an area left out.

    Raises:
        PictureError: if one is not four finite numbers: what should be blurred must not be stored as it is.
    """
    boxes = []
    for row in rows:
        try:
            left, top, right, bottom = (float(number) for number in row)
        except (TypeError, ValueError):
            raise PictureError(PictureReason.BAD_BOX, f"{str(row)[:80]} is not a box of four numbers") from None
        if not np.isfinite([left, top, right, bottom]).all():
            raise PictureError(PictureReason.BAD_BOX, f"{str(row)[:80]} is not a box of four numbers")
        left, top, right, bottom = (min(max(number, 0.0), 1.0) for number in (left, top, right, bottom))
        if left < right and top < bottom:
            boxes.append((left, top, right, bottom))
    return boxes


def upright_box(box: Box, orientation: int) -> Box:
    """The box on the picture turned as EXIF's orientation (1 to 8) asks."""
    left, top, right, bottom = box
    if orientation >= 5:
        left, top, right, bottom = top, left, bottom, right
    if orientation in (3, 4, 7, 8):
        top, bottom = 1 - bottom, 1 - top
    if orientation in (2, 3, 6, 7):
        left, right = 1 - right, 1 - left
    return left, top, right, bottom


def blur(pixels: np.ndarray, boxes: Sequence[Box]) -> np.ndarray:
    """u8[height, width, 3] with the boxes, grown, blurred; their edges fade."""
    height, width = pixels.shape[:2]
    mask = np.zeros((height, width), np.uint8)
    longest = 0.0
    for left, top, right, bottom in boxes:
        side = max((right - left) * width, (bottom - top) * height)
        longest = max(longest, side)
        grown = _GROWTH * side
        rows = slice(max(int(top * height - grown), 0), int(np.ceil(bottom * height + grown)))
        columns = slice(max(int(left * width - grown), 0), int(np.ceil(right * width + grown)))
        mask[rows, columns] = 255
    if longest == 0:
        return pixels
    gaussian = ImageFilter.GaussianBlur(_RADIUS * longest)
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    faded = Image.fromarray(mask).filter(gaussian)
    return np.asarray(Image.composite(picture.filter(gaussian), picture, faded))
