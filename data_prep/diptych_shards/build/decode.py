"""From fetched bytes to pixels: libjpeg-turbo straight for plain JPEGs, Pillow for all else.

What is accepted and what comes out is the same either way (`diptych.data.picture_safety`); the straight way is quicker,
and can decode at a fraction of the size.
"""

from __future__ import annotations

import numpy as np
import simplejpeg
from PIL import Image

from diptych.data import colour_profile
from diptych.data.picture_safety import (
    CRAWLED_FORMATS,
    PictureError,
    PictureFacts,
    PictureFile,
    PictureReason,
    exif_orientation,
    too_many_pixels,
)
from diptych_shards.build.jpeg_segments import JpegMetadata, JpegStructureError, num_scans, read_metadata
from diptych_shards.build.resize import Size

MAX_SCANS = 200
"""A progressive JPEG needs ten or so; each takes the time of a whole picture and next to no bytes."""


class JpegFile:
    """A JPEG in grey or colour, its header read and its pixels not decoded yet; the twin of `PictureFile`."""

    format = "JPEG"

    def __init__(self, data: bytes, metadata: JpegMetadata, size: Size, max_pixels: int):
        self._data = data
        self._metadata = metadata
        self._max_pixels = max_pixels
        self.width, self.height = size

    def decode(self, at_least: Size | None = None) -> tuple[np.ndarray | Image.Image, PictureFacts]:
        """All pixels as the file stores them; or, quicker, a reduced picture that covers the size `at_least`.

        Raises:
            PictureError: if it is not whole or does not decode.
        """
        try:
            pixels = self._pixels(at_least)
        except (ValueError, RuntimeError):
            # Damaged, perhaps in a way that a viewer would not mind: Pillow decides.
            return PictureFile(self._data, max_pixels=self._max_pixels, formats=CRAWLED_FORMATS).decode()
        profile = self._metadata.profile
        if not profile or colour_profile.is_srgb(profile):
            profile = None
        exif = self._metadata.exif
        return pixels, PictureFacts(exif_orientation(exif), profile, exif, is_plain=True)

    def _pixels(self, at_least: Size | None) -> np.ndarray:
        if at_least is None or self.width < 2 * at_least[0] or self.height < 2 * at_least[1]:
            return simplejpeg.decode_jpeg(self._data)
        # Between half and full size the reduced transform is slower than the plain one.
        return simplejpeg.decode_jpeg(self._data, min_width=at_least[0], min_height=at_least[1], min_factor=2)


def open_file(data: bytes, *, max_pixels: int) -> JpegFile | PictureFile:
    """The picture with its header read.

    Raises:
        PictureError: if it is none of `CRAWLED_FORMATS`, or has more than `max_pixels`.
    """
    if data.startswith(b"\xff\xd8\xff"):
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
            metadata = read_metadata(data)
            scans = num_scans(data)
        except (JpegStructureError, ValueError, RuntimeError):
            scans, colours = 0, "unknown"
        if scans > MAX_SCANS:
            raise PictureError(PictureReason.DECODE_ERROR, f"{scans} scans; at most {MAX_SCANS}")
        if colours in ("Gray", "YCbCr", "RGB") and not (metadata.profile and colours == "Gray"):
            if width * height > max_pixels:
                raise too_many_pixels(width, height, max_pixels)
            return JpegFile(data, metadata, (width, height), max_pixels)
    return PictureFile(data, max_pixels=max_pixels, formats=CRAWLED_FORMATS)
