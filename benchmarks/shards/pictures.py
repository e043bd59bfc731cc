"""Make pictures like those of a crawl from real photographs: many sizes, formats and qualities, always the same.

Mirror images continue a photograph to a canvas, and a picture is a scaled crop of the canvas: small pictures are scaled
down, as they usually come from larger ones; large ones are scaled up, as a pixel of a camera has less detail.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import random
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
from PIL import Image

SHARES = {"jpg": 0.62, "progressive jpg": 0.26, "png": 0.07, "webp": 0.05}
"""About those of a web crawl."""
MEDIAN_SHORTER_SIDE = 620
SHORTER_SIDES = 130, 2400
ASPECT_RATIOS = (1.0, 4 / 3, 3 / 4, 3 / 2, 2 / 3, 16 / 9)
MOST_PNG_PIXELS = 300_000
"""Photographs in PNG are small on the web, since the files would be large."""
ZOOMS = 0.6, 1.6
UNZOOMED_SHORTER_SIDE = 500
CANVAS = 3200


@dataclass(frozen=True)
class Picture:
    """One file that the server serves."""

    data: bytes
    suffix: str
    width: int
    height: int


def make_pictures(number: int, photographs: list[Path]) -> list[Picture]:
    """Make this many different pictures."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), spawn) as processes:
        return list(processes.map(partial(_make, photographs=tuple(photographs)), range(number), chunksize=8))


def _make(seed: int, photographs: tuple[Path, ...]) -> Picture:
    draw = random.Random(seed)
    (kind,) = draw.choices(list(SHARES), list(SHARES.values()))
    shorter = min(max(draw.lognormvariate(0, 0.62) * MEDIAN_SHORTER_SIDE, SHORTER_SIDES[0]), SHORTER_SIDES[1])
    ratio = draw.choice(ASPECT_RATIOS)
    width, height = round(shorter * max(ratio, 1)), round(shorter * max(1 / ratio, 1))
    if kind == "png" and width * height > MOST_PNG_PIXELS:
        scale = (MOST_PNG_PIXELS / (width * height)) ** 0.5
        width, height = round(width * scale), round(height * scale)
    zoom = draw.uniform(*ZOOMS) * (min(width, height) / UNZOOMED_SHORTER_SIDE) ** 0.5
    zoom = max(zoom, width / CANVAS, height / CANVAS)
    image = _crop(draw, draw.choice(photographs), (width / zoom, height / zoom)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    file = io.BytesIO()
    if kind == "png":
        image.save(file, "PNG")
    elif kind == "webp":
        image.save(file, "WEBP", quality=draw.randint(65, 92), method=2)
    else:
        subsampling = draw.choice(("4:2:0", "4:2:0", "4:2:0", "4:4:4"))
        quality = draw.randint(60, 94)
        image.save(file, "JPEG", quality=quality, subsampling=subsampling, progressive=kind.startswith("progressive"))
    return Picture(file.getvalue(), kind.split()[-1], width, height)


def _crop(draw: random.Random, photograph: Path, size: tuple[float, float]) -> Image.Image:
    canvas = _canvas(photograph)
    width, height = min(round(size[0]), CANVAS), min(round(size[1]), CANVAS)
    left, top = draw.randint(0, CANVAS - width), draw.randint(0, CANVAS - height)
    return Image.fromarray(canvas[top : top + height, left : left + width])


@cache
def _canvas(photograph: Path) -> np.ndarray:
    pixels = np.asarray(Image.open(photograph).convert("RGB"))
    height, width = pixels.shape[:2]
    return np.pad(pixels, ((0, CANVAS - height), (0, CANVAS - width), (0, 0)), mode="symmetric")
