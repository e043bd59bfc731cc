import numpy as np
import pytest
from PIL import Image

from diptych.data.augment import AUGMENTATIONS, crop_and_resize
from diptych.data.draws import Draws
from tests.data.made_pixels import noise, photograph


def test_resizing_agrees_with_pillows_antialiased_bicubic():
    picture = photograph(320, 256)
    ours = crop_and_resize(np.array(picture), (20, 10, 240, 240), 96).transpose(1, 2, 0).astype(float)
    theirs = np.asarray(picture.crop((20, 10, 260, 250)).resize((96, 96), Image.Resampling.BICUBIC)).astype(float)
    assert 10 * np.log10(255**2 / np.mean((ours - theirs) ** 2)) > 50


@pytest.mark.parametrize("shape", [(640, 427), (427, 641), (50, 30)])
def test_training_without_augmentation_crops_the_middle_square_and_then_resizes(shape):
    picture, side = np.array(noise(*shape)), min(shape)
    box = ((shape[0] - side) // 2, (shape[1] - side) // 2, side, side)
    pixels = AUGMENTATIONS["none"](picture, 48, Draws(0))
    assert np.array_equal(pixels, crop_and_resize(picture, box, 48))


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("size", [(64, 64), (200, 40), (40, 200), (9, 9), (1, 30)])
def test_every_augmentation_gives_a_square_of_bytes_decided_by_its_randomness(name, size):
    picture = np.array(Image.new("RGB", size, "red") if min(size) < 16 else photograph(*size))
    crops = [AUGMENTATIONS[name](picture, 32, Draws(5)) for _ in range(2)]
    assert crops[0].shape == (3, 32, 32) and crops[0].dtype == np.uint8
    assert np.array_equal(*crops)


def test_the_square_crop_reaches_both_ends():
    pixels = np.zeros((10, 30, 3), dtype=np.uint8)
    pixels[:, :, 0] = np.arange(30)
    draws = Draws(0)
    lefts = {int(AUGMENTATIONS["random_square_crop"](pixels, 10, draws)[0, 0, 0]) for _ in range(300)}
    assert lefts == set(range(21))
