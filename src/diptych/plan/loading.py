"""Compute what it takes to feed GPUs from shards."""

from __future__ import annotations

from dataclasses import dataclass

SAMPLES_PER_CORE_SECOND = 1_290.0
"""Samples that a core reads, decodes, crops and resizes to 224 px from shards of 256 px (BENCHMARKS.md, the loader)."""
BYTES_OF_SAMPLE = 34_000.0
"""A JPEG of 256 px in such a shard, with its caption."""
USUAL_SIZE = 224
SMALLER = 1.7
"""How many times as many samples a core loads at half the size or less: from shards made for the larger size, JPEGs are
then decoded at a fraction (EXPERIMENTS.md, stages)."""


@dataclass(frozen=True)
class Loading:
    """What one machine's GPUs need."""

    cores: float
    """CPU cores that do nothing but load."""
    bytes_per_second: float
    """Read from shards."""


def loading(
    samples_per_second: float,
    image_size: int,
    samples_per_core_second: float | None = None,
    *,
    largest_size: int | None = None,
) -> Loading:
    """What it takes to load so many samples; time and bytes grow with the area of a picture.

    samples_per_core_second: as `diptych data stats` measured it with this config; None: SAMPLES_PER_CORE_SECOND at 224
        pixels, and less for larger pictures.
    largest_size: that the same shards are read for in another stage; None: image_size.
    """
    largest_size = max(image_size, largest_size or 0)
    area = (largest_size / USUAL_SIZE) ** 2
    speed = samples_per_core_second or SAMPLES_PER_CORE_SECOND / area
    if 2 * image_size <= largest_size:
        speed *= SMALLER
    return Loading(samples_per_second / speed, samples_per_second * BYTES_OF_SAMPLE * area)
