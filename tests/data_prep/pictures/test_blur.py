"""The contents of a box cannot be recognised; everything outside stays the same."""

import numpy as np
import pytest
from PIL import Image

from diptych_shards.pictures.blur import blur, read_boxes

NOISE = np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)


def blurred_noise(boxes):
    return np.asarray(blur(Image.fromarray(NOISE), boxes))


def test_inside_the_box_nothing_is_left_and_far_outside_nothing_changes():
    blurred = blurred_noise([(1 / 3, 0.25, 2 / 3, 0.75)])
    assert blurred[50:150, 100:200].std() < 0.1 * NOISE.std()
    far = np.ones((200, 300), bool)
    far[10:190, 60:240] = False
    assert np.array_equal(blurred[far], NOISE[far])


def test_the_box_is_grown_by_a_tenth_of_its_longer_side():
    blurred = blurred_noise([(1 / 3, 0.4, 2 / 3, 0.6)])
    changed = np.abs(blurred.astype(int) - NOISE).mean(axis=(0, 2)) > 0
    assert changed[91:210].all()


def test_every_box_is_blurred_as_strongly_as_the_largest_needs():
    blurred = blurred_noise([(0, 0, 0.5, 0.9), (0.9, 0.9, 0.95, 0.95)])
    assert blurred[182:188, 273:282].std() < 0.2 * NOISE.std()


def test_without_boxes_that_have_an_area_nothing_changes():
    assert read_boxes([[0.5, 0.5, 0.5, 0.9], [1.2, 0, 1.4, 1], [0.9, 0.1, 0.1, 0.9]]) == []
    assert np.array_equal(blurred_noise([]), NOISE)


@pytest.mark.parametrize("row", [[-5, -5, 9, 9], ["0", "0", "1", "1"], np.array([0, 0, 1, 1], np.float32)])
def test_boxes_are_cut_to_the_picture(row):
    assert read_boxes([row]) == [(0, 0, 1, 1)]
