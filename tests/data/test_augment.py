import numpy as np
import pytest
import torch
from PIL import Image

from diptych.data.augment import AUGMENTATIONS, LONGEST_STRIP, centre_crop, crop_and_resize
from diptych.data.draws import Draws


def photograph(width, height):
    """A picture with edges and gradients, from a seed."""
    random = np.random.default_rng(0)
    coarse = Image.fromarray(random.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def noise(width, height):
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_resizing_agrees_with_pillows_antialiased_bicubic():
    picture = photograph(320, 256)
    ours = crop_and_resize(np.array(picture), (20, 10, 240, 240), 96).transpose(1, 2, 0).astype(float)
    theirs = np.asarray(picture.crop((20, 10, 260, 250)).resize((96, 96), Image.Resampling.BICUBIC)).astype(float)
    assert 10 * np.log10(255**2 / np.mean((ours - theirs) ** 2)) > 50


def test_the_centre_crop_of_a_square_of_the_right_size_is_the_picture():
    picture = photograph(48, 48)
    assert np.array_equal(centre_crop(picture, 48).permute(1, 2, 0).numpy(), np.asarray(picture))


@pytest.mark.parametrize("size", [224, 336])
@pytest.mark.parametrize(
    "shape",
    [(640, 427), (427, 640), (641, 428), (224, 224), (225, 224), (224, 1000), (335, 337), (336, 336), (1024, 768)]
    + [(100, 75), (75, 100), (3, 2), (1, 1), (1, 30), (300, 1), (2000, 30), (30, 2000)]
    + [(244, 607), (266, 565), (238, 651), (607, 244), (333, 999)],  # Pillow 13 resizes some of these by rows first
)
def test_the_centre_crop_has_the_pixels_of_open_clips_evaluation(shape, size):
    transform = pytest.importorskip("open_clip").image_transform(size, is_train=False, mean=(0, 0, 0), std=(1, 1, 1))
    for picture in (noise(*shape), photograph(*shape) if min(shape) >= 30 else Image.new("RGB", shape, "orange")):
        theirs = (transform(picture) * 255).round().to(torch.int64)
        is_strip = max(shape) > LONGEST_STRIP * min(shape)  # the edges of its part are rounded to float32
        assert (centre_crop(picture, size) - theirs).abs().max() <= (1 if is_strip else 0)


@pytest.mark.parametrize("shape", [(640, 427), (427, 641), (50, 30)])
def test_training_without_augmentation_crops_the_middle_square_and_then_resizes(shape):
    picture, side = np.array(noise(*shape)), min(shape)
    box = ((shape[0] - side) // 2, (shape[1] - side) // 2, side, side)
    pixels = AUGMENTATIONS["none"](picture, 48, Draws(0))
    assert np.array_equal(pixels, crop_and_resize(picture, box, 48))


@pytest.mark.parametrize("size", [(1, 16_000_000), (16_000_000, 1)])
def test_of_a_thin_strip_only_the_middle_is_resized(size):
    """Resized to 224 pixels of width, the whole strip would take 10 TB."""
    assert torch.equal(centre_crop(Image.new("RGB", size, "red"), 224)[:, 100, 100], torch.tensor([255, 0, 0]))


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
