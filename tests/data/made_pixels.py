"""Pictures that are hard to resize, made from a seed."""

import numpy as np
from PIL import Image


def photograph(width, height):
    """A picture with edges and gradients, from a seed."""
    random = np.random.default_rng(0)
    coarse = Image.fromarray(random.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def noise(width, height):
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8))
