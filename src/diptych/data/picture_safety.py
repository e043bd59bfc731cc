"""Open a picture from an untrusted source.

Only the formats of `picture_formats` reach a decoder; the size in the header is checked before a pixel is decoded; a
picture that is not whole is refused. The result is the first frame as a viewer would show it (see `picture_rgb`).
"""

from __future__ import annotations

import enum
import functools
import importlib.util
import io
import math
import struct
import zlib
from collections.abc import Sequence

from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from diptych.data.avif_boxes import coded_size
from diptych.data.exif import exif_orientation
from diptych.data.jpeg_segments import (
    JpegStructureError,
    TooManySegmentsError,
    num_scans,
    read_header,
)
from diptych.data.picture_formats import MAX_PIXELS, PICTURE_FORMATS, format_of
from diptych.data.picture_rgb import PictureFacts, as_seen, exif_of, to_rgb
from diptych.data.png_chunks import with_colour_key, without_text
from diptych.data.tiff_page import first_page
from diptych.errors import UserError
from diptych.extras import pip_install

_PLUGINS: dict[str, type[ImageFile.ImageFile]] = {
    # The plugins themselves, not Image.open: it warns of large pictures instead of refusing them, and takes a
    # JPEG with a second picture behind it (phones write these) for another format.
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "AVIF": AvifImagePlugin.AvifImageFile,
}
# One thread a picture: the cores are kept busy by other pictures.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1
_DECODER_ERRORS = (OSError, SyntaxError, ValueError, IndexError, KeyError, TypeError, EOFError, OverflowError,
                   RuntimeError, struct.error, zlib.error, Image.DecompressionBombError)  # fmt: skip
"""What Pillow's decoders are known to raise on hostile bytes."""

MAX_SCANS = 100
"""A progressive JPEG needs about ten. Each takes as long as decoding a whole picture, and hardly any bytes."""
MAX_SCANNED_PIXELS = 2_000_000_000
"""Scans times pixels: 20 scans of the largest picture, two seconds of a decoder."""

_REDUCTION_MARGIN = 2.5
"""A JPEG is decoded at 1/2, 1/4 or 1/8 if that is at least so many times the size that it is resized to. Over 400
photographs, those decoded smaller were as good as with full decoding and an area filter.
"""


class PictureReason(enum.Enum):
    """Why a picture is refused."""

    NOT_A_PICTURE = "not_a_picture"
    FORMAT_NOT_ALLOWED = "format_not_allowed"
    TOO_MANY_PIXELS = "too_many_pixels"
    TOO_SMALL = "too_small"
    AREA_TOO_LARGE = "area_too_large"
    ASPECT_RATIO_TOO_LARGE = "aspect_ratio_too_large"
    TRUNCATED = "truncated"
    DECODE_ERROR = "decode_error"
    ENCODE_ERROR = "encode_error"
    BAD_BOX = "bad_box"


class PictureError(UserError):
    """The picture is refused; `reason` says why."""

    def __init__(self, reason: PictureReason, message: str):
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[object, ...]:
        return PictureError, (self.reason, str(self))


class PictureFile:
    """A picture with an accepted header, not decoded yet."""

    def __init__(self, data: bytes, *, max_pixels: int = MAX_PIXELS, formats: Sequence[str] = PICTURE_FORMATS):
        """Read the header.

        Raises:
            PictureError: if the file has none of the `formats`, or more than `max_pixels`.
        """
        self._data = data
        self.format = _format(data, formats)
        has_many_scans = self.format == "JPEG" and _has_many_scans(data)
        plugin = _plugin(self.format)
        try:
            self._file = plugin(io.BytesIO(_what_is_read(data, self.format)))
        except _DECODER_ERRORS as error:
            raise _decoder_refusal(data, self.format, error) from error
        self.width, self.height = self._file.size
        """As stored, before the orientation is applied."""
        sizes = [self._file.size, coded_size(data) if self.format == "AVIF" else (0, 0)]
        width, height = max(sizes, key=math.prod)
        if width * height > max_pixels:
            raise too_many_pixels(width, height, max_pixels)
        if has_many_scans:
            check_scans(data, self.width * self.height)

    @property
    def upright_size(self) -> tuple[int, int]:
        """Width and height after the orientation that the file's header gives."""
        is_turned = exif_orientation(exif_of(self._file)) >= 5
        return (self.height, self.width) if is_turned else (self.width, self.height)

    def load(self) -> ImageFile.ImageFile:
        """Decode the first frame, in the file's own mode.

        Raises:
            PictureError: if the file is not whole or does not decode.
        """
        try:
            self._file.load()
        except _DECODER_ERRORS as error:
            raise _decoder_refusal(self._data, self.format, error) from error
        if not _is_whole(self._data, self.format):
            raise PictureError(PictureReason.TRUNCATED, f"the {self.format} ends early")
        return self._file

    def decode(self, resized: tuple[int, int] | None = None) -> tuple[Image.Image, PictureFacts]:
        """Decode the first frame to mode RGB, transparency over white; `as_seen` does the rest.

        resized: the width and height that the picture will be resized to. A much larger JPEG is decoded at 1/2, 1/4 or
        1/8 of its size.

        Raises:
            PictureError: if the file is not whole or does not decode.
        """
        covered: tuple[float, float] = self.width, self.height
        if resized is not None and self.format == "JPEG":
            least = math.ceil(_REDUCTION_MARGIN * resized[0]), math.ceil(_REDUCTION_MARGIN * resized[1])
            if (reduced := self._file.draft(None, least)) is not None:
                covered = reduced[1][2:]
        picture = self.load()
        try:
            seen = with_colour_key(picture, self._data) if self.format == "PNG" else picture
            return to_rgb(seen, self.format, covered)
        except _DECODER_ERRORS as error:
            raise _decoder_refusal(self._data, self.format, error) from error


def open_picture(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The picture in mode RGB, upright, in sRGB.

    Raises:
        PictureError: if it is not a whole picture, of one of `PICTURE_FORMATS` and of at most `max_pixels`.
    """
    return as_seen(*PictureFile(data, max_pixels=max_pixels).decode())


def convert_picture(picture: Image.Image, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """A copy of the picture, of any mode, as `open_picture` would give it.

    EXIF and ICC profile are read from `picture.info`, where Pillow puts them. A picture that was turned by
    `ImageOps.exif_transpose` is not turned again.

    Raises:
        PictureError: if it has no pixels or more than `max_pixels`, does not load, or has a mode without a meaning.
    """
    if not picture.width * picture.height:
        raise PictureError(PictureReason.TOO_SMALL, f"{picture.width} x {picture.height} pixels; at least 1 a side")
    if picture.width * picture.height > max_pixels:
        raise too_many_pixels(picture.width, picture.height, max_pixels)
    try:
        picture.load()
        return as_seen(*to_rgb(picture, picture.format or "", picture.size))
    except PictureError:
        raise
    except _DECODER_ERRORS as error:
        raise PictureError(PictureReason.DECODE_ERROR, f"the image of mode {picture.mode}: {error}") from error


def check_picture(data: bytes, *, max_pixels: int = MAX_PIXELS, min_side: int = 1) -> tuple[int, int, str]:
    """Decode a picture to check it, and return its width and height (upright) and its format.

    Raises:
        PictureError: as `open_picture`; also if a PNG has a wrong checksum, or a side is below `min_side`.
    """
    file = PictureFile(data, max_pixels=max_pixels, formats=PICTURE_FORMATS)
    width, height = file.width, file.height
    if min(width, height) < min_side:
        raise PictureError(PictureReason.TOO_SMALL, f"{width} x {height} pixels; at least {min_side} a side")
    picture = file.load()
    if file.format == "PNG":
        _check_png_checksums(data)
    if exif_orientation(exif_of(picture)) >= 5:
        width, height = height, width
    return width, height, file.format


def why_not_decodable(format: str) -> str | None:
    """What this installation lacks to read a format, and how to install it; None if it reads the format."""
    if format == "AVIF" and not AvifImagePlugin.SUPPORTED:
        return "this Pillow reads no AVIF; install one with AVIF (its wheels from 11.3 on have it)"
    if format == "HEIC" and importlib.util.find_spec("pillow_heif") is None:
        return f"HEIC needs an extra; run `{pip_install('heic')}`"
    return None


def _has_many_scans(data: bytes) -> bool:
    try:
        return read_header(data).has_many_scans
    except TooManySegmentsError as error:
        raise PictureError(PictureReason.DECODE_ERROR, str(error)) from error
    except JpegStructureError:
        return True


def check_scans(data: bytes, num_pixels: int) -> None:
    """Refuse a JPEG with so many scans that it takes minutes to decode.

    Raises:
        PictureError: there are more than MAX_SCANS, or too many for this number of pixels.
    """
    most = min(MAX_SCANS, max(MAX_SCANNED_PIXELS // max(num_pixels, 1), 1))
    scans = num_scans(data, most)
    if scans > most:
        raise PictureError(PictureReason.DECODE_ERROR, f"{scans} scans of {num_pixels} pixels; at most {most}")


def too_many_pixels(width: int, height: int, max_pixels: int) -> PictureError:
    return PictureError(PictureReason.TOO_MANY_PIXELS, f"{width} x {height} pixels; at most {max_pixels}")


def _format(data: bytes, allowed: Sequence[str]) -> str:
    if not data:
        raise PictureError(PictureReason.NOT_A_PICTURE, "the file is empty")
    name = format_of(data)
    if name is None:
        raise PictureError(PictureReason.NOT_A_PICTURE, "the file does not begin as a picture does")
    if name not in allowed:
        raise PictureError(PictureReason.FORMAT_NOT_ALLOWED, f"{name} is not among the formats that are read")
    if missing := why_not_decodable(name):
        raise PictureError(PictureReason.FORMAT_NOT_ALLOWED, missing)
    return name


def _what_is_read(data: bytes, name: str) -> bytes:
    if name == "TIFF":
        return first_page(data)
    return without_text(data) if name == "PNG" else data


def _plugin(name: str) -> type[ImageFile.ImageFile]:
    return _heic_plugin() if name == "HEIC" else _PLUGINS[name]


@functools.cache
def _heic_plugin() -> type[ImageFile.ImageFile]:
    import pillow_heif

    pillow_heif.options.DECODE_THREADS = 1
    return pillow_heif.HeifImageFile


def _decoder_refusal(data: bytes, name: str, error: Exception) -> PictureError:
    if "truncated" in str(error).lower() or not _is_whole(data, name):
        return PictureError(PictureReason.TRUNCATED, f"the {name} ends early")
    return PictureError(PictureReason.DECODE_ERROR, f"the {name} does not decode")


def _is_whole(data: bytes, name: str) -> bool:
    """Whether the file has its end. Decoders accept some files without one."""
    # The end is usually near the last byte, so searching backwards takes no time.
    if name == "PNG":
        return data.rfind(b"IEND\xaeB`\x82") >= 0
    if name == "WEBP":
        return len(data) >= 8 + int.from_bytes(data[4:8], "little")
    if name != "JPEG":
        return True  # the other decoders refuse files without an end
    # Bytes after the end are common (second pictures, padding), so the marker need not be the last thing. A marker
    # inside the EXIF thumbnail does no harm: the decoder itself refuses a scan that breaks off.
    return data.rfind(b"\xff\xd9") >= 0


def _check_png_checksums(data: bytes) -> None:
    # The decoder does not check them, so a flipped bit would pass as another colour.
    try:
        PngImagePlugin.PngImageFile(io.BytesIO(without_text(data))).verify()
    except _DECODER_ERRORS as error:
        raise PictureError(PictureReason.DECODE_ERROR, "a checksum of the PNG is wrong") from error
