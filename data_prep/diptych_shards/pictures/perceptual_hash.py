"""A 64-bit hash that stays nearly the same when a picture is recoded or resized.

pHash as `imagehash.phash` lays it out: luma, resized to 32 x 32, cosine transform, a bit for each of the 8 x 8 lowest
frequencies (above their median or not), the lowest first, as the most significant. Copies are a few bits apart.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from diptych_shards.pictures.resize import resize

_SIDE = 32
_LOW = 8
_FLAT = 2.5
"""Standard deviation of the 32 x 32 luma, of 255. Below, the bits are those of the noise."""
STEADY = 150.0
"""A margin. With it the hashes of 131 drawings and of their copies (JPEG of quality 50 to 95, WebP of 50, half the
size) are within 4 bits; without, those of 75 to 82 of 100 are. For photographs it makes no difference.
"""
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
# The lowest frequencies of DCT-II, not normalised: so it is in imagehash, and the first row and column depend on it.
_COSINES = 2 * np.cos(np.pi / _SIDE * np.outer(np.arange(_LOW), np.arange(_SIDE) + 0.5)).astype(np.float32)


def perceptual_hash(picture: Image.Image, *, margin: float = 0) -> int | None:
    """The hash of a picture in mode RGB; None if it is too flat to be told from others.

    margin: a frequency counts as above the median only from so much on. `STEADY` is above the noise of an encoder: the
    hash is then the same for copies of symmetric drawings, which have exact zeros at half of their frequencies.
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
    """In how many of the 64 bits two hashes differ."""
    return (one ^ other).bit_count()
