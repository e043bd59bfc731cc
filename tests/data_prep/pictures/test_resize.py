"""Resizing does not depend on how the pixels lie in memory."""

import numpy as np
import pytest
from PIL import Image

from diptych_shards.pictures.resize import resize, upright
from tests.data_prep.made_pictures import psnr, scene

PIXELS = np.asarray(scene(60, 60))
FOUR_BYTES = np.dstack([PIXELS, np.random.default_rng(0).integers(0, 256, (60, 60), np.uint8)])


@pytest.mark.parametrize("size", [(45, 30), (31, 40), (200, 100), (60, 60)])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_view_is_resized_as_its_copy(orientation, size):
    wanted = resize(Image.fromarray(np.ascontiguousarray(upright(PIXELS, orientation))), size)
    np.testing.assert_array_equal(resize(upright(PIXELS, orientation), size), wanted)
    np.testing.assert_array_equal(resize(upright(FOUR_BYTES[:, :, :3], orientation), size), wanted)


def test_the_resized_picture_is_that_of_pillows_bicubic():
    wanted = scene(60, 60).resize((45, 30), Image.Resampling.BICUBIC)
    assert psnr(resize(FOUR_BYTES[:, :, :3], (45, 30)), wanted) > 50
