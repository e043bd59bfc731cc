import numpy as np
import pytest
import torch
from PIL import Image

from diptych.data.preprocessing import LONGEST_STRIP, centre_crop
from tests.data.made_pixels import noise, photograph


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


@pytest.mark.parametrize("size", [(1, 16_000_000), (16_000_000, 1)])
def test_of_a_thin_strip_only_the_middle_is_resized(size):
    """Resized to 224 pixels of width, the whole strip would take 10 TB."""
    assert torch.equal(centre_crop(Image.new("RGB", size, "red"), 224)[:, 100, 100], torch.tensor([255, 0, 0]))
