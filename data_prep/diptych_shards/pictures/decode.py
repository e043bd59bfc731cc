"""From fetched bytes to pixels: plain JPEGs, WebPs and PNGs straight by the quickest decoder, Pillow for all else.

What comes out is the same either way, and what is accepted too (`diptych.data.picture_safety`), but for flaws of PNGs
that nobody sees; the straight way is quicker, and can leave out what a smaller picture does not show.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import simplejpeg
from PIL import Image

from diptych.data import colour_profile
from diptych.data.jpeg_segments import (
    JpegMetadata,
    JpegStructureError,
    TooManySegmentsError,
    read_metadata,
    without_last_bit,
)
from diptych.data.picture_safety import (
    PictureError,
    PictureFacts,
    PictureFile,
    PictureReason,
    check_scans,
    exif_orientation,
    too_many_pixels,
)
from diptych_shards.pictures import png_file, webp_file
from diptych_shards.pictures.four_bytes import three_of
from diptych_shards.pictures.plain import Plain
from diptych_shards.pictures.resize import Size


@dataclass(frozen=True)
class Saving:
    """What of a JPEG is not decoded where the picture becomes smaller."""

    margin: float
    """It is decoded at 1/2, 1/4 or 1/8 where that is at least so many times what it is resized to."""
    no_last_bit_from: float
    """A progressive one of at least middling quality does without the last bit of detail from so many times on."""


CAREFUL = Saving(margin=2.5, no_last_bit_from=4)
"""Of 400 photographs (0.06 dB lost, after encoding) those that it concerns come out as well as by full decoding and an
area filter.
"""
FAST = Saving(margin=1, no_last_bit_from=2)
"""The smallest that covers the stored picture: quicker, at a loss of some dB."""

_FACTORS = (8, 4, 2)
"""Reductions whose transforms are quick and exact; those between are slower than the next, and lose 6 dB more."""


class JpegFile:
    """A JPEG in grey or colour, its header read and its pixels not decoded yet; the twin of `PictureFile`."""

    format = "JPEG"

    def __init__(self, data: bytes, metadata: JpegMetadata, size: Size, max_pixels: int):
        self._data = data
        self._metadata = metadata
        self._max_pixels = max_pixels
        self.width, self.height = size
        self.covered: tuple[float, float] = size
        """Width and height of the picture, in pixels of what `decode` gave: half of 101 pixels are 50.5 of 51."""

    def decode(self, size: Size | None = None, *, fast: bool = False) -> tuple[np.ndarray | Image.Image, PictureFacts]:
        """All pixels as the file stores them; or, quicker, what a picture that becomes this size still shows of them.

        It is reduced to 1/2, 1/4 or 1/8. The array is a view on one of four bytes a pixel, as the resizer wants them.

        Raises:
            PictureError: if it is not whole or does not decode.
        """
        try:
            pixels = self._pixels(size, FAST if fast else CAREFUL)
        except (ValueError, RuntimeError):
            # Damaged, perhaps in a way that a viewer would not mind: Pillow decides.
            self.covered = self.width, self.height
            return PictureFile(self._data, max_pixels=self._max_pixels).decode()
        return pixels, _facts(self._metadata.exif, self._metadata.profile)

    def _pixels(self, size: Size | None, saving: Saving) -> np.ndarray:
        data, width, height, factor = self._data, self.width, self.height, 1
        if size is not None:
            factor = next((factor for factor in _FACTORS if self._covers(size, saving.margin, factor)), 1)
            width, height = -(-width // factor), -(-height // factor)
            if self._metadata.has_many_scans and self._covers(size, saving.no_last_bit_from):
                data = without_last_bit(data)
        four_bytes = np.empty((height, width, 4), np.uint8)
        pixels = simplejpeg.decode_jpeg(data, "RGBX", min_width=width, min_height=height, buffer=four_bytes.reshape(-1))
        if pixels.shape != four_bytes.shape:
            raise ValueError(f"decoded to {pixels.shape}")
        self.covered = self.width / factor, self.height / factor
        return three_of(four_bytes)

    def _covers(self, size: Size, times: float, factor: int = 1) -> bool:
        return -(-self.width // factor) >= times * size[0] and -(-self.height // factor) >= times * size[1]


class PlainFile:
    """A plain WebP or PNG, its header read and its pixels not decoded yet; the twin of `PictureFile`."""

    def __init__(self, data: bytes, plain: Plain, max_pixels: int):
        self._data = data
        self._plain = plain
        self._max_pixels = max_pixels
        self.format, self.width, self.height = plain.format, plain.width, plain.height

    def decode(self) -> tuple[np.ndarray | Image.Image, PictureFacts]:
        """Raises:
        PictureError: if it is not whole or does not decode.
        """
        pixels = self._plain.decode()
        if pixels is None:  # Pillow knows the reason, or does not mind
            return PictureFile(self._data, max_pixels=self._max_pixels).decode()
        return pixels, _facts(self._plain.exif, self._plain.profile)


def open_file(data: bytes, *, max_pixels: int) -> JpegFile | PlainFile | PictureFile:
    """The picture with its header read.

    Raises:
        PictureError: if it is none of `PICTURE_FORMATS`, or has more than `max_pixels`.
    """
    if data.startswith(b"\xff\xd8\xff"):
        try:
            metadata = read_metadata(data)
        except TooManySegmentsError as error:
            raise PictureError(PictureReason.DECODE_ERROR, str(error)) from error
        except JpegStructureError:
            metadata = None
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        except (ValueError, RuntimeError):
            colours = "unknown"
        if metadata is not None and colours in (("YCbCr", "RGB") if metadata.profile else ("YCbCr", "RGB", "Gray")):
            if width * height > max_pixels:
                raise too_many_pixels(width, height, max_pixels)
            check_scans(data, width * height, metadata)
            return JpegFile(data, metadata, (width, height), max_pixels)
    if (plain := webp_file.open_plain(data) or png_file.open_plain(data)) is not None:
        if plain.width * plain.height > max_pixels:
            raise too_many_pixels(plain.width, plain.height, max_pixels)
        return PlainFile(data, plain, max_pixels)
    return PictureFile(data, max_pixels=max_pixels)


def _facts(exif: bytes | None, profile: bytes) -> PictureFacts:
    """Of a plain picture in RGB."""
    needed = profile if profile and not colour_profile.is_srgb(profile) else None
    return PictureFacts(exif_orientation(exif), needed, exif, is_plain=True)
