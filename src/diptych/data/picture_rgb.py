"""From the pixels that a decoder gives to RGB as a viewer shows them.

Transparency lies over white, 16-bit values are scaled, ICC profiles are applied (broken ones ignored), CMYK becomes RGB
by its profile or else by Pillow's plain conversion, and EXIF's orientation turns the picture.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from diptych.data import colour_profile
from diptych.data.exif import exif_orientation
from diptych.data.picture_formats import STORED_FORMATS
from diptych.errors import UserError

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_GREY_MODES = ("1", "L", "LA", "I", "I;16")


@dataclass(frozen=True)
class PictureFacts:
    """What is left to do to decoded pixels, and what else the file contains."""

    covered: tuple[float, float]
    """Width and height of the picture in decoded pixels: half of 101 pixels are 50.5 of 51."""
    orientation: int
    """From EXIF, 1 to 8."""
    profile: bytes | None
    """The ICC profile of these pixels; None if they are sRGB."""
    exif: bytes | None
    """As in a TIFF file, from its byte order on."""
    is_plain: bool
    """Whether a reader that ignores transparency, CMYK, palettes and animation sees the same picture."""


def to_rgb(picture: Image.Image, format_name: str, covered: tuple[float, float]) -> tuple[Image.Image, PictureFacts]:
    """The loaded picture in mode RGB, transparency over white, and what is left to do for `as_seen`."""
    exif = exif_of(picture)
    profile = picture.info.get("icc_profile") or b""
    if colour_profile.fits(profile, "CMYK") and picture.mode == "CMYK":
        rgb, profile = colour_profile.to_srgb(picture, profile), b""
    elif colour_profile.fits(profile, "L") and picture.mode in _GREY_MODES:
        rgb, profile = colour_profile.to_srgb(_converted(picture).getchannel(0), profile), b""
    else:
        rgb = _converted(picture)
    if picture.mode in ("CMYK", *_GREY_MODES) or colour_profile.is_srgb(profile):
        profile = b""
    # Only stored formats can be plain; a GIF or a TIFF would count its frames by reading them all.
    is_still = format_name in STORED_FORMATS and getattr(picture, "n_frames", 1) == 1
    is_plain = picture.mode in ("RGB", "L") and "transparency" not in picture.info and is_still
    return rgb, PictureFacts(covered, exif_orientation(exif), profile or None, exif, is_plain)


def as_seen(rgb: Image.Image, facts: PictureFacts) -> Image.Image:
    """A decoded picture upright and in sRGB, without its EXIF and its profile."""
    if facts.profile is not None:
        rgb = colour_profile.to_srgb(rgb, facts.profile)
    turn = _TURNS.get(facts.orientation)
    seen = rgb.copy() if turn is None else rgb.transpose(turn)
    seen.info = {}
    return seen


def _converted(picture: Image.Image) -> Image.Image:
    if picture.mode == "RGB" and "transparency" not in picture.info:
        return picture
    if picture.mode == "F":
        return _from_floats(np.asarray(picture))
    if picture.mode.startswith("I"):
        # Pillow's own conversion clips 16-bit values: pictures come out white.
        values = np.clip(np.asarray(picture).astype(np.int64), 0, 65535)
        return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data or picture.mode == "PA":
        with_alpha = picture.convert("LA" if picture.mode == "La" else "RGBA").convert("RGBA")
        white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, with_alpha).convert("RGB")
    return picture.convert("RGB")


def _from_floats(values: np.ndarray) -> Image.Image:
    """The picture of mode F in RGB. White must be 255; values that suggest another white are refused."""
    lowest, highest = values.min(), values.max()
    if not (lowest >= 0 and highest <= 255) or (highest <= 1 and bool((values % 1).any())):
        raise UserError(f"floating point from {lowest:g} to {highest:g}; expected 0 to 255, which is white")
    return Image.fromarray(np.rint(values).astype(np.uint8)).convert("RGB")


def exif_of(picture: Image.Image) -> bytes | None:
    """The picture's EXIF as in a TIFF file, from its byte order on; None if it has none."""
    exif = picture.info.get("exif")
    return exif.removeprefix(b"Exif\0\0") if isinstance(exif, bytes) else None
