"""Copies hash alike, different pictures do not."""

import numpy as np
import pytest
from PIL import Image, ImageOps

from diptych_shards.pictures.perceptual_hash import distance, perceptual_hash
from tests.data_prep.made_pictures import encoded, opened, scene


@pytest.mark.parametrize("size", [(400, 300), (200, 150), (97, 80), (800, 600)])
@pytest.mark.parametrize("quality", [95, 40])
def test_resized_and_recoded_copies_are_a_few_bits_apart(size, quality):
    copy = opened(encoded(scene().resize(size), quality=quality))
    assert distance(perceptual_hash(scene()), perceptual_hash(copy)) <= 6


def test_other_pictures_are_far():
    others = [ImageOps.mirror(scene()), ImageOps.flip(scene()), scene().rotate(90), ImageOps.invert(scene())]
    assert all(distance(perceptual_hash(scene()), perceptual_hash(other)) > 12 for other in others)


def test_the_bits_are_those_of_the_definition():
    picture = scene(32, 32)
    luma = np.asarray(picture) @ np.array([0.299, 0.587, 0.114])
    positions = np.arange(32)
    low = [
        sum(
            luma[y, x] * np.cos(np.pi / 32 * u * (y + 0.5)) * np.cos(np.pi / 32 * v * (x + 0.5))
            for y in positions
            for x in positions
        )
        for u in range(8)
        for v in range(8)
    ]
    bits = "".join(str(int(value > np.median(low))) for value in low)
    assert perceptual_hash(picture) == int(bits, 2)


def test_flat_pictures_have_none():
    assert perceptual_hash(Image.new("RGB", (300, 200), (250, 250, 251))) is None
    grain = np.random.default_rng(0).normal(128, 4, (256, 256, 3)).astype(np.uint8)
    assert perceptual_hash(Image.fromarray(grain)) is None
