"""From the decoded raster to the one that is stored: size, orientation, crop and padding.

One antialiased Catmull-Rom kernel shrinks and enlarges; it is Pillow's bicubic (above 55 dB) in a tenth of its time.
"""

from __future__ import annotations

import functools

import cykooz_resizer
from PIL import Image

Size = tuple[int, int]
"""width, height"""

RESIZE_MODES = ("no", "border", "keep_ratio", "keep_ratio_largest", "center_crop")


def resized_size(size: Size, mode: str, image_size: int, *, only_if_bigger: bool) -> Size | None:
    """What the picture is resized to, before crop and padding; None if the mode leaves it as it is.

    The shorter side (`keep_ratio`, `center_crop`) or the longer (`border`, `keep_ratio_largest`) becomes `image_size`,
    the other is rounded as img2dataset does, to 0 where it would be below half a pixel.
    """
    if mode == "no":
        return None
    side = min(size) if mode in ("keep_ratio", "center_crop") else max(size)
    if only_if_bigger and side <= image_size:
        return None
    scale = image_size / side
    return round(size[0] * scale), round(size[1] * scale)


def resize(picture: Image.Image, size: Size, covered: tuple[float, float] | None = None) -> Image.Image:
    """The picture (RGB) in this size.

    covered: width and height that are the picture, from the upper left corner on; by default all.
    """
    covered = covered or picture.size
    if picture.size == size == covered:
        return picture
    target = Image.new(picture.mode, size)
    resizer, options = _catmull_rom()
    if picture.size != covered:
        options = options.copy()
        options.crop_box = cykooz_resizer.CropBox(0, 0, *covered)
    resizer.resize_pil(picture, target, options)
    return target


def crop_to_square(picture: Image.Image, side: int) -> Image.Image:
    """The middle square; `side` is not above the shorter side."""
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    return picture.crop((left, top, left + side, top + side))


def pad_to_square(picture: Image.Image, side: int) -> Image.Image:
    """The picture in the middle of a white square; `side` is not below the longer side."""
    square = Image.new("RGB", (side, side), "white")
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square


@functools.cache
def _catmull_rom() -> tuple[cykooz_resizer.Resizer, cykooz_resizer.ResizeOptions]:
    kernel = cykooz_resizer.ResizeAlg.convolution(cykooz_resizer.FilterType.catmull_rom)
    return cykooz_resizer.Resizer(), cykooz_resizer.ResizeOptions(resize_alg=kernel, use_alpha=False)
