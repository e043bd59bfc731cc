"""Opening a picture that nobody vouches for.

Only JPEG, PNG and WebP reach a decoder; the size in the header is checked before a pixel is decoded; a
picture that is not whole is refused. What comes out is RGB as a viewer would show it: turned by its EXIF
orientation, transparency over white, 16-bit values scaled, CMYK converted.
"""

from __future__ import annotations

import enum
import io
import struct
import zlib

import numpy as np
from PIL import Image, ImageFile, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

MAX_PIXELS = 64_000_000

_PLUGINS: dict[str, type[ImageFile.ImageFile]] = {
    # The plugins themselves, not Image.open: it warns of large pictures instead of refusing them, and takes a
    # JPEG with a second picture behind it (as phones write) for a format of its own.
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
}
_REFUSED_FORMATS = {
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"8BPS": "PSD",
    b"\0\0\1\0": "ICO",
    b"%PDF": "PDF",
    b"%!PS": "PostScript",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
}
_DECODER_ERRORS = (OSError, SyntaxError, ValueError, IndexError, KeyError, TypeError, EOFError, OverflowError,
                   RuntimeError, struct.error, zlib.error)  # fmt: skip
"""What Pillow's decoders are known to raise on hostile bytes."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION_TAG = 0x0112


class PictureReason(enum.Enum):
    """Why a picture is refused."""

    NOT_A_PICTURE = "not_a_picture"
    FORMAT_NOT_ALLOWED = "format_not_allowed"
    TOO_MANY_PIXELS = "too_many_pixels"
    TOO_SMALL = "too_small"
    TRUNCATED = "truncated"
    DECODE_ERROR = "decode_error"


class PictureError(ValueError):
    """The picture is refused; `reason` says why."""

    def __init__(self, reason: PictureReason, message: str):
        super().__init__(message)
        self.reason = reason

    def __reduce__(self):
        return PictureError, (self.reason, str(self))


def open_picture(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The picture in mode RGB, upright.

    Raises:
        PictureError: if it is not a whole JPEG, PNG or WebP of at most `max_pixels`.
    """
    picture = _load(data, max_pixels=max_pixels, min_side=1)
    rgb = _to_rgb(picture)
    turn = _TURNS.get(_orientation(picture))
    return rgb if turn is None else rgb.transpose(turn)


def check_picture(data: bytes, *, max_pixels: int = MAX_PIXELS, min_side: int = 1) -> tuple[int, int, str]:
    """Width and height (upright) and format (`JPEG`, `PNG`, `WEBP`) of a picture that decodes whole.

    Raises:
        PictureError: as `open_picture`; also for a PNG with a wrong checksum, and a side below `min_side`.
    """
    picture = _load(data, max_pixels=max_pixels, min_side=min_side)
    if picture.format == "PNG":
        _check_png_checksums(data)
    width, height = picture.size
    if _orientation(picture) >= 5:
        width, height = height, width
    return width, height, str(picture.format)


def _load(data: bytes, *, max_pixels: int, min_side: int) -> ImageFile.ImageFile:
    """Decoded, first frame, in the mode of the file."""
    name = _format(data)
    try:
        picture = _PLUGINS[name](io.BytesIO(data))
    except _DECODER_ERRORS as error:
        raise _decoder_refusal(data, name, error) from error
    width, height = picture.size
    if width * height > max_pixels:
        raise PictureError(PictureReason.TOO_MANY_PIXELS, f"{width} x {height} pixels; at most {max_pixels}")
    if min(width, height) < min_side:
        raise PictureError(PictureReason.TOO_SMALL, f"{width} x {height} pixels; at least {min_side} a side")
    try:
        picture.load()
    except _DECODER_ERRORS as error:
        raise _decoder_refusal(data, name, error) from error
    if not _is_whole(data, name):
        raise PictureError(PictureReason.TRUNCATED, f"the {name} ends early")
    return picture


def _format(data: bytes) -> str:
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if not data:
        raise PictureError(PictureReason.NOT_A_PICTURE, "the file is empty")
    for magic, name in _REFUSED_FORMATS.items():
        if data.startswith(magic):
            raise _not_allowed(name)
    if data[4:8] == b"ftyp":
        raise _not_allowed("AVIF, HEIC or a video")
    if b"<svg" in data[:1024]:
        raise _not_allowed("SVG")
    raise PictureError(PictureReason.NOT_A_PICTURE, "the file does not begin as a JPEG, PNG or WebP does")


def _not_allowed(name: str) -> PictureError:
    return PictureError(PictureReason.FORMAT_NOT_ALLOWED, f"{name} instead of JPEG, PNG or WebP")


def _decoder_refusal(data: bytes, name: str, error: Exception) -> PictureError:
    if "truncated" in str(error).lower() or not _is_whole(data, name):
        return PictureError(PictureReason.TRUNCATED, f"the {name} ends early")
    return PictureError(PictureReason.DECODE_ERROR, f"the {name} does not decode")


def _is_whole(data: bytes, name: str) -> bool:
    """Whether the file has its end; decoders accept some that lack it."""
    if name == "PNG":
        return b"IEND\xaeB`\x82" in data
    if name == "WEBP":
        return len(data) >= 8 + int.from_bytes(data[4:8], "little")
    # Bytes after the end are common (second pictures, padding), so the marker need not be the last thing; one
    # inside the EXIF thumbnail cannot mislead, as the decoder itself refuses a scan that breaks off.
    return b"\xff\xd9" in data


def _check_png_checksums(data: bytes) -> None:
    # The decoder skips them, so a flipped bit would pass as another colour.
    try:
        PngImagePlugin.PngImageFile(io.BytesIO(data)).verify()
    except _DECODER_ERRORS as error:
        raise PictureError(PictureReason.DECODE_ERROR, "a checksum of the PNG is wrong") from error


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode == "RGB" and "transparency" not in picture.info:
        return picture.copy()  # a plain Image, free of the file
    if picture.mode.startswith("I"):
        # Pillow's own conversion clips 16-bit values: pictures come out white.
        values = np.clip(np.asarray(picture).astype(np.int64), 0, 65535)
        return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if picture.mode.upper() in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        with_alpha = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, with_alpha).convert("RGB")
    return picture.convert("RGB")


def _orientation(picture: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 if there is none or it cannot be read."""
    exif = picture.info.get("exif")
    if not isinstance(exif, bytes):
        return 1
    tiff = exif.removeprefix(b"Exif\0\0")
    try:
        order = {b"II*\0": "<", b"MM\0*": ">"}[tiff[:4]]
        (directory,) = struct.unpack_from(f"{order}I", tiff, 4)
        (num_entries,) = struct.unpack_from(f"{order}H", tiff, directory)
        for entry in range(num_entries):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", tiff, directory + 2 + 12 * entry)
            if tag == _ORIENTATION_TAG and kind == 3 and 1 <= value <= 8:
                return value
    except (KeyError, struct.error):
        pass
    return 1
