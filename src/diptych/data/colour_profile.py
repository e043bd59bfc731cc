"""ICC profiles: convert pixels of other colour spaces to sRGB, which training assumes.

Most profiles in the wild are sRGB itself under one of many names. The name proves nothing (some linear profiles are
named sRGB), so each profile is tried once on a grid of colours, and ignored if it changes none.
"""

from __future__ import annotations

import functools
import hashlib
import io
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageCms

MAX_PROFILE_BYTES = 4 << 20
"""The largest press profiles have 3 MB; larger ones are ignored."""

_SPACE_OF_MODE = {"RGB": b"RGB ", "L": b"GRAY", "CMYK": b"CMYK"}
_INVISIBLE = 2
"""Differences up to this (of 255) over the whole grid come from rounding in the many editions of sRGB."""


def fits(profile: bytes, mode: str) -> bool:
    """Whether the profile is for pixels of this mode (`RGB`, `L`, `CMYK`)."""
    return len(profile) <= MAX_PROFILE_BYTES and profile[16:20] == _SPACE_OF_MODE.get(mode)


def is_srgb(profile: bytes) -> bool:
    """Whether RGB pixels need no conversion: the profile is sRGB's, or useless."""
    return _transform(_Profile.of(profile), "RGB") is None


def to_srgb(picture: Image.Image, profile: bytes) -> Image.Image:
    """Convert a picture of mode `RGB`, `L` or `CMYK` to sRGB, mode `RGB`; a broken profile is ignored."""
    transform = _transform(_Profile.of(profile), picture.mode)
    if transform is None:
        return picture.convert("RGB")
    converted = ImageCms.applyTransform(picture, transform)
    assert converted is not None  # it is None only if the picture itself is changed
    return converted


@dataclass(frozen=True)
class _Profile:
    """A profile as the key of a cache, compared by its digest, which is quicker than by its bytes."""

    digest: bytes
    data: bytes = field(compare=False, repr=False)

    @classmethod
    def of(cls, data: bytes) -> _Profile:
        return cls(hashlib.blake2b(data, digest_size=16).digest(), data)


@functools.lru_cache(maxsize=16)
def _transform(profile: _Profile, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The conversion from pixels of this mode to sRGB; None if they can stay as they are."""
    if not fits(profile.data, mode):
        return None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile.data))
        transform = ImageCms.buildTransform(source, _srgb(), mode, "RGB", ImageCms.Intent.PERCEPTUAL)
        if mode == "RGB" and _changes_nothing(transform):
            return None
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    return transform


@functools.cache
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def _changes_nothing(transform: ImageCms.ImageCmsTransform) -> bool:
    levels = np.linspace(0, 255, 18).astype(np.uint8)
    grid = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(18 * 18, 18, 3)
    after = np.asarray(ImageCms.applyTransform(Image.fromarray(grid), transform))
    return bool(np.abs(after.astype(int) - grid).max() <= _INVISIBLE)
