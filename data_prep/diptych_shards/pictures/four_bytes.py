"""RGB pixels with a fourth byte beside them in memory, as decoders, resizer and encoder are quickest with.

Such pixels are handed around as u8[height, width, 3], a view that leaves the fourth byte out. To copy such a view takes
as long as to encode it: who can do with four bytes asks for them here.
"""

from __future__ import annotations

import numpy as np


def three_of(four_bytes: np.ndarray) -> np.ndarray:
    """The view u8[height, width, 3] on u8[height, width, 4]."""
    return four_bytes[:, :, :3]


def four_of(pixels: np.ndarray) -> np.ndarray | None:
    """The view u8[height, width, 4] of which these are three, also cropped; None if there is none, or it is turned."""
    whole = pixels.base
    if not isinstance(whole, np.ndarray) or whole.ndim != 3 or whole.shape[2] != 4 or not whole.flags.c_contiguous:
        return None
    if pixels.shape[2] != 3 or pixels.strides != whole.strides:
        return None
    place, channel = divmod(pixels.ctypes.data - whole.ctypes.data, 4)
    if channel:
        return None
    top, left = divmod(place, whole.shape[1])
    return whole[top : top + pixels.shape[0], left : left + pixels.shape[1]]
