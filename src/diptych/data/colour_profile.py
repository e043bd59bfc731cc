"""ICC profiles: pixels of another colour space become sRGB, which is what every reader of a picture assumes.

Most profiles in the wild are sRGB itself under one of many names. What a profile is called proves nothing (there are
linear ones named sRGB), so each is tried once on a grid of colours and, where nothing moves, forgotten.
"""

from __future__ import annotations

import functools
import hashlib
import io
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageCms

MAX_PROFILE_BYTES = 4 << 20
"""The largest press profiles have 3 MB; what is larger is ignored."""

_SPACE_OF_MODE = {"RGB": b"RGB ", "L": b"GRAY", "CMYK": b"CMYK"}
_INVISIBLE = 2
"""Differences up to this (of 255) over the whole grid are the rounding of sRGB's many editions."""


def fits(profile: bytes, mode: str) -> bool:
    """Whether the profile speaks of pixels of this mode (`RGB`, `L`, `CMYK`)."""
    return len(profile) <= MAX_PROFILE_BYTES and profile[16:20] == _SPACE_OF_MODE.get(mode)


def is_srgb(profile: bytes) -> bool:
    """Whether nothing is to be done for RGB pixels: the profile is sRGB's, or useless."""
    return _transform(_Profile.of(profile), "RGB") is None


def to_srgb(picture: Image.Image, profile: bytes) -> Image.Image:
    """The picture (mode `RGB`, `L` or `CMYK`) in sRGB, mode `RGB`; without regard to a broken profile."""
    transform = _transform(_Profile.of(profile), picture.mode)
    if transform is None:
        return picture.convert("RGB")
    converted = ImageCms.applyTransform(picture, transform)
    assert converted is not None  # it is None only where the picture itself is changed
    return converted


@dataclass(frozen=True)
class _Profile:
    """A profile as a key of a cache: told apart by its digest, which is quicker than by its bytes."""

    digest: bytes
    data: bytes = field(compare=False, repr=False)

    @classmethod
    def of(cls, data: bytes) -> _Profile:
        return cls(hashlib.blake2b(data, digest_size=16).digest(), data)


@functools.lru_cache(maxsize=16)
def _transform(profile: _Profile, mode: str) -> ImageCms.ImageCmsTransform | None:
    """What turns pixels of this mode into sRGB; None if they are to stay as they are."""
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
