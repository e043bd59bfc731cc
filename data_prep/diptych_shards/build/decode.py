"""From fetched bytes to pixels: libjpeg-turbo straight for plain JPEGs, Pillow for all else.

What is accepted and what comes out is the same either way (`diptych.data.picture_safety`); the straight way is quicker,
and can decode at a fraction of the size.
"""

from __future__ import annotations

import ctypes

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

MAX_SCANS = 100
"""A progressive JPEG needs ten or so; each takes the time of a whole picture and next to no bytes."""

_FACTORS = (8, 4, 2)
"""Reductions whose transforms are quick and exact; those between are slower than the next, and lose 6 dB more."""

# The resizer takes nothing but `bytes`: decoding into one that nobody has seen yet saves a copy of the picture, 3 % of
# the time of the whole. This is what the C interface is documented to allow.
_uninitialised_bytes = ctypes.pythonapi["PyBytes_FromStringAndSize"]
_uninitialised_bytes.restype = ctypes.py_object
_uninitialised_bytes.argtypes = [ctypes.c_void_p, ctypes.c_ssize_t]
_address_of_bytes = ctypes.pythonapi["PyBytes_AsString"]
_address_of_bytes.restype = ctypes.c_void_p
_address_of_bytes.argtypes = [ctypes.py_object]


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

        The reduction is 1/2, 1/4 or 1/8.

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
        width, height = self.width, self.height
        for factor in _FACTORS if at_least is not None else ():
            reduced = -(-self.width // factor), -(-self.height // factor)
            if reduced[0] >= at_least[0] and reduced[1] >= at_least[1]:
                width, height = reduced
                break
        bare = _uninitialised_bytes(None, width * height * 3)
        memory = (ctypes.c_ubyte * len(bare)).from_address(_address_of_bytes(bare))
        pixels = simplejpeg.decode_jpeg(self._data, min_width=width, min_height=height, buffer=memory)
        if pixels.shape != (height, width, 3):
            raise ValueError(f"decoded to {pixels.shape}")
        return np.ndarray((height, width, 3), np.uint8, bare)


def open_file(data: bytes, *, max_pixels: int) -> JpegFile | PictureFile:
    """The picture with its header read.

    Raises:
        PictureError: if it is none of `CRAWLED_FORMATS`, or has more than `max_pixels`.
    """
    if data.startswith(b"\xff\xd8\xff"):
        try:
            metadata = read_metadata(data)
        except JpegStructureError:
            metadata = None
        if metadata is None or metadata.has_many_scans:
            scans = num_scans(data)
            if scans > MAX_SCANS:
                raise PictureError(PictureReason.DECODE_ERROR, f"{scans} scans; at most {MAX_SCANS}")
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        except (ValueError, RuntimeError):
            colours = "unknown"
        if metadata is not None and colours in (("YCbCr", "RGB") if metadata.profile else ("YCbCr", "RGB", "Gray")):
            if width * height > max_pixels:
                raise too_many_pixels(width, height, max_pixels)
            return JpegFile(data, metadata, (width, height), max_pixels)
    return PictureFile(data, max_pixels=max_pixels, formats=CRAWLED_FORMATS)
