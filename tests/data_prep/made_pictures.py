"""Pictures for the tests of this folder, drawn here."""

import io

import numpy as np
from PIL import Image


def scene(width=400, height=300):
    """A picture with slopes, edges and fine detail, and no symmetry."""
    y, x = np.mgrid[0:height, 0:width]
    waves = 40 * np.sin(x / 9) * np.cos(y / 13) + 25 * ((x // 40 + y // 30) % 2)
    red = 60 + 120 * x / width + waves
    green = 200 - 150 * y / height + waves
    blue = np.where((x - width / 4) ** 2 + (y - height / 3) ** 2 < (height / 5) ** 2, 220, 40) + waves / 2
    grain = np.random.default_rng(0).normal(0, 3, (height, width, 3))
    return Image.fromarray(np.clip(np.stack([red, green, blue], -1) + grain, 0, 255).astype(np.uint8))


def encoded(picture, format="JPEG", **options):
    file = io.BytesIO()
    picture.save(file, format, **({"quality": 95} if format == "JPEG" else {}) | options)
    return file.getvalue()


def opened(data):
    return Image.open(io.BytesIO(data))


def psnr(one, other):
    difference = np.asarray(one, float) - np.asarray(other, float)
    return 10 * np.log10(255**2 / max(np.mean(difference**2), 1e-9))
