"""The fourth byte of a view's pixels is found, and only there where it is."""

import numpy as np
import pytest

from diptych_shards.pictures.encode import encode
from diptych_shards.pictures.four_bytes import four_of, three_of
from diptych_shards.pictures.resize import crop_to_square, pad_to_square, upright
from tests.data_prep.made_pictures import scene

PIXELS = np.asarray(scene(40, 30))
FOUR_BYTES = np.dstack([PIXELS, np.random.default_rng(0).integers(0, 256, (30, 40), np.uint8)])


def as_they_are(pixels):
    return pixels


@pytest.mark.parametrize("cut", [as_they_are, lambda p: crop_to_square(p, 20), lambda p: pad_to_square(p, 50)])
def test_whole_cropped_and_padded_pixels_keep_their_fourth_byte_and_are_encoded_the_same(cut):
    pixels, alone = cut(three_of(FOUR_BYTES)), cut(PIXELS)
    np.testing.assert_array_equal(pixels, alone)
    np.testing.assert_array_equal(four_of(pixels)[:, :, :3], alone)
    options = {"subsampling": "420", "exif": None}
    assert encode(pixels, "jpg", 90, **options) == encode(alone, "jpg", 90, **options)
    assert encode(pixels, "png", 1, **options) == encode(alone, "png", 1, **options)


@pytest.mark.parametrize(
    "pixels",
    [
        PIXELS,
        PIXELS[:20],
        FOUR_BYTES[:, :, 1:],
        FOUR_BYTES[::2, :, :3],
        FOUR_BYTES[:, ::2, :3],
        *(upright(FOUR_BYTES[:, :, :3], orientation) for orientation in range(2, 9)),
    ],
)
def test_other_arrays_have_none(pixels):
    assert four_of(pixels) is None
