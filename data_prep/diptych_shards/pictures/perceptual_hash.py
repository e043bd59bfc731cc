"""A 64-bit hash that hardly changes when a picture is encoded again or resized.

pHash with the bits of `imagehash.phash`: luma, resized to 32 x 32, cosine transform, a bit for each of the 8 x 8 lowest
frequencies (above their median or not), the lowest first and most significant. Copies differ in a few bits.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from diptych_shards.pictures.resize import resize

_SIDE = 32
_LOW = 8
_FLAT = 2.5
"""Standard deviation of the 32 x 32 luma (0 to 255). Below it, the picture is flat: its bits would be noise."""
STEADY = 150.0
"""A margin. With it, the hashes of 131 drawings and of their copies (JPEG of quality 50 to 95, WebP of quality 50, half
the size) differ in at most 4 bits; without it, only 75 to 82 % do. For photographs it makes no difference.
"""
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
# The lowest frequencies of DCT-II, not normalised, as in imagehash: the first row and column depend on it.
_COSINES = 2 * np.cos(np.pi / _SIDE * np.outer(np.arange(_LOW), np.arange(_SIDE) + 0.5)).astype(np.float32)


def perceptual_hash(picture: Image.Image, *, margin: float = 0) -> int | None:
    """The hash of a picture in mode RGB; None if the picture is too flat for a useful hash.

    margin: how far above the median a frequency must be for its bit to be set. `STEADY` is above the noise of encoders,
    so that copies of symmetric drawings, where half of the frequencies are exactly zero, have the same hash.
    """
    luma = np.asarray(resize(picture, (_SIDE, _SIDE)), np.float32) @ _LUMA
    difference = (luma - luma.mean()).ravel()
    if difference @ difference < difference.size * _FLAT**2:
        return None
    frequencies = (_COSINES @ luma @ _COSINES.T).ravel()
    median = np.sort(frequencies)[31:33].mean()
    bits = frequencies > median + margin
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def distance(one: int, other: int) -> int:
    """How many of the 64 bits of two hashes differ."""
    return (one ^ other).bit_count()
