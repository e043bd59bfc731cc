import numpy as np
import pytest
import torch
from PIL import Image

from diptych.config.schema import ImageTowerConfig
from diptych.data.preprocessing import LONGEST_STRIP, preprocess
from tests.data.made_pixels import noise, photograph

SHAPES = [
    *[(640, 427), (427, 640), (641, 428), (224, 224), (225, 224), (224, 1000), (335, 337), (336, 336), (1024, 768)],
    *[(100, 75), (75, 100), (3, 2), (1, 1), (1, 30), (300, 1), (2000, 30), (30, 2000)],
    *[(244, 607), (266, 565), (238, 651), (607, 244), (333, 999)],  # Pillow 13 resizes some of these by rows first
]


def test_a_square_of_the_right_size_stays_as_it_is():
    picture = photograph(48, 48)
    for mode in ("shortest", "longest", "squash"):
        square = preprocess(picture, ImageTowerConfig(image_size=48, resize_mode=mode))
        assert np.array_equal(square.permute(1, 2, 0).numpy(), np.asarray(picture))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
def test_the_pixels_are_those_of_open_clips_evaluation(mode, interpolation, shape):
    transforms = pytest.importorskip("open_clip.transform")
    for size, fill in ((224, 0), (336, 127)):
        theirs_config = transforms.PreprocessCfg(
            size=size, mean=(0, 0, 0), std=(1, 1, 1), interpolation=interpolation, resize_mode=mode, fill_color=fill
        )
        config = ImageTowerConfig(
            image_size=size, interpolation=interpolation, resize_mode=mode, fill_colour=(fill, fill, fill)
        )
        for picture in (noise(*shape), photograph(*shape) if min(shape) >= 30 else Image.new("RGB", shape, "orange")):
            if mode == "longest" and min(shape) / max(shape) * size < 0.5:
                continue  # open_clip fails, since a side is rounded to 0
            theirs = (transforms.image_transform_v2(theirs_config, is_train=False)(picture) * 255).round()
            # The edges of a strip's part are rounded to float32, and its sides are resized in a fixed order.
            is_strip = max(shape) > LONGEST_STRIP * min(shape)
            assert (preprocess(picture, config) - theirs).abs().max() <= (1 if is_strip and mode != "longest" else 0)


def test_what_is_missing_beside_a_whole_picture_is_filled():
    config = ImageTowerConfig(image_size=48, resize_mode="longest", fill_colour=(9, 99, 199))
    square = preprocess(Image.new("RGB", (96, 40), "white"), config)
    assert square.tolist()[1] == [[99] * 48] * 14 + [[255] * 48] * 20 + [[99] * 48] * 14
    assert square[:, 0, 0].tolist() == [9, 99, 199]


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("size", [(1, 16_000_000), (16_000_000, 1)])
def test_of_a_thin_strip_little_is_resized(mode, size):
    """Its shorter side resized to 224 pixels, the whole strip would take 10 TB; squashed by its width first, 14 GB."""
    square = preprocess(Image.new("RGB", size, "red"), ImageTowerConfig(resize_mode=mode))
    assert torch.equal(square[:, 111, 111], torch.tensor([255, 0, 0]))
