"""Pictures of another size."""

import pytest
from PIL import Image

from diptych_shards.pictures.resize import crop_to_square, pad_to_square, resize
from tests.data_prep.made_pictures import psnr, scene


@pytest.mark.parametrize("size", [(45, 30), (31, 40), (200, 100)])
def test_the_resized_picture_is_that_of_pillows_bicubic(size):
    assert psnr(resize(scene(60, 60), size), scene(60, 60).resize(size, Image.Resampling.BICUBIC)) > 50


def test_a_picture_of_the_size_already_stays_as_it_is():
    picture = scene(60, 40)
    assert resize(picture, (60, 40)) is picture


def test_crop_and_padding_undo_each_other():
    picture = scene(60, 60)
    assert crop_to_square(pad_to_square(picture, 91), 60) == picture
