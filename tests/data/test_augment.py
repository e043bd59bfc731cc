import numpy as np
import pytest
import torch
from PIL import Image

from diptych.data.augment import AUGMENTATIONS, centre_crop, crop_and_resize


def photograph(width, height):
    """Something with edges and gradients, from a seed."""
    random = np.random.default_rng(0)
    coarse = Image.fromarray(random.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def test_resizing_agrees_with_pillows_antialiased_bicubic():
    picture = photograph(320, 256)
    ours = crop_and_resize(picture, (20, 10, 240, 240), 96).permute(1, 2, 0).numpy().astype(float)
    theirs = np.asarray(picture.crop((20, 10, 260, 250)).resize((96, 96), Image.Resampling.BICUBIC)).astype(float)
    assert 10 * np.log10(255**2 / np.mean((ours - theirs) ** 2)) > 50


def test_the_centre_crop_of_a_square_of_the_right_size_is_the_picture():
    picture = photograph(48, 48)
    assert np.array_equal(centre_crop(picture, 48).permute(1, 2, 0).numpy(), np.asarray(picture))


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("size", [(64, 64), (200, 40), (40, 200), (9, 9), (1, 30)])
def test_every_augmentation_gives_a_square_of_bytes_decided_by_its_randomness(name, size):
    picture = Image.new("RGB", size, "red") if min(size) < 16 else photograph(*size)
    crops = [AUGMENTATIONS[name](picture, 32, np.random.default_rng(5)) for _ in range(2)]
    assert crops[0].shape == (3, 32, 32) and crops[0].dtype == torch.uint8
    assert torch.equal(*crops)


def test_the_square_crop_reaches_both_ends():
    pixels = np.zeros((10, 30, 3), dtype=np.uint8)
    pixels[:, :, 0] = np.arange(30)
    picture = Image.fromarray(pixels)
    random = np.random.default_rng(0)
    lefts = {int(AUGMENTATIONS["random_square_crop"](picture, 10, random)[0, 0, 0]) for _ in range(300)}
    assert lefts == set(range(21))
