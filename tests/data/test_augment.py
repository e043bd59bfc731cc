"""Augmentations are compared with those of torchvision, timm and open_clip, which are given the numbers we drew."""

import random
from collections import deque

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.random_erasing import RandomErasing as TimmRandomErasing
from torchvision.transforms import v2

from diptych.config.schema import (
    ColourJitterConfig,
    DataConfig,
    ImageTowerConfig,
    RandomErasingConfig,
    RandomResizedCropConfig,
)
from diptych.data.augment import augment, crop_and_resize, random_rectangle, random_square
from diptych.data.draws import Draws
from diptych.data.preprocessing import preprocess
from tests.data.made_pixels import noise, photograph

CROPS = ["random_square_crop", "random_resized_crop", "none"]
WHOLE_PICTURE = {
    "augmentation": "random_resized_crop",
    "random_resized_crop": RandomResizedCropConfig(scale=(1, 1), ratio=(1, 1)),
}


def config(**settings):
    return DataConfig(train="shards", **settings)


def image(size, **settings):
    return ImageTowerConfig(image_size=size, **settings)


class RecordedDraws(Draws):
    """Draws that others can repeat: `uniforms` in order, and `places` by the size of the range they are from."""

    def __init__(self, key):
        super().__init__(key)
        self.uniforms: deque[float] = deque()
        self.places: dict[int, deque[int]] = {}

    def uniform(self, low=0.0, high=1.0):
        self.uniforms.append(super().uniform(low, high))
        return self.uniforms[-1]

    def below(self, stop):
        drawn = super().below(stop)
        self.places.setdefault(stop, deque()).append(drawn)
        return drawn


@pytest.fixture
def repeat(monkeypatch):
    """A function that makes torch and Python's `random` draw again what was recorded."""

    def patch(draws, order=()):
        def next_uniform(*_):
            return draws.uniforms.popleft()

        def next_place(low, stop, size=None):
            drawn = low + draws.places[stop - low].popleft()
            return drawn if size is None else torch.tensor([drawn])

        monkeypatch.setattr(torch.Tensor, "uniform_", lambda tensor, *_: tensor.fill_(next_uniform()))
        monkeypatch.setattr(torch, "rand", lambda _: torch.tensor([next_uniform()]))
        monkeypatch.setattr(torch, "randint", next_place)
        monkeypatch.setattr(torch, "randperm", lambda _: torch.tensor(order))
        monkeypatch.setattr(random, "random", next_uniform)
        monkeypatch.setattr(random, "uniform", next_uniform)
        monkeypatch.setattr(random, "randint", lambda low, high: next_place(low, high + 1))

    return patch


def channels_last(pixels):
    return np.ascontiguousarray(pixels.transpose(1, 2, 0))


def test_resizing_agrees_with_pillows_antialiased_bicubic():
    picture = photograph(320, 256)
    ours = channels_last(crop_and_resize(np.array(picture), (20, 10, 240, 240), (96, 96))).astype(float)
    theirs = np.asarray(picture.crop((20, 10, 260, 250)).resize((96, 96), Image.Resampling.BICUBIC)).astype(float)
    assert 10 * np.log10(255**2 / np.mean((ours - theirs) ** 2)) > 50


@pytest.mark.parametrize("shape", [(640, 427), (427, 641), (50, 30)])
def test_training_without_augmentation_crops_the_middle_square_and_then_resizes(shape):
    picture, side = np.array(noise(*shape)), min(shape)
    box = ((shape[0] - side) // 2, (shape[1] - side) // 2, side, side)
    pixels = augment(picture, config(augmentation="none"), image(48), Draws(0))
    assert np.array_equal(pixels, crop_and_resize(picture, box, (48, 48)))


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("mode", ["longest", "squash"])
@pytest.mark.parametrize("shape", [(640, 427), (300, 427), (30, 21), (500, 20), (20, 500), (1, 300)])
def test_training_without_augmentation_agrees_with_evaluation(mode, interpolation, shape):
    picture = noise(*shape)
    tower = image(48, resize_mode=mode, interpolation=interpolation, fill_colour=(9, 99, 199))
    ours = augment(np.array(picture), config(augmentation="none"), tower, Draws(0)).astype(float)
    assert np.abs(ours - preprocess(picture, tower).numpy()).max() <= 2  # torch's fixed-point weights


@pytest.mark.parametrize(
    "settings",
    [{"augmentation": crop} for crop in CROPS]
    + [
        {"horizontal_flip_probability": 0.5},
        {"grey_probability": 0.5},
        {"colour_jitter": ColourJitterConfig(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)},
        {"random_erasing": RandomErasingConfig(probability=0.5, max_rectangles=3)},
    ],
)
@pytest.mark.parametrize("size", [(64, 64), (200, 40), (40, 200), (9, 9), (1, 30), (32, 32)])
def test_every_augmentation_gives_a_square_of_bytes_decided_by_its_draws(settings, size):
    picture = np.array(Image.new("RGB", size, "red") if min(size) < 16 else photograph(*size))
    before = picture.copy()
    for key in range(4):
        squares = [augment(picture, config(**settings), image(32), Draws(key)) for _ in range(2)]
        assert squares[0].shape == (3, 32, 32) and squares[0].dtype == np.uint8
        assert squares[0].strides[0] == 1  # channels last, as the batch holds it: other orders take far longer to copy
        assert np.array_equal(*squares)
    assert np.array_equal(picture, before)


def test_the_square_crop_reaches_both_ends():
    draws = Draws(0)
    boxes = {random_square(30, 10, draws) for _ in range(300)}
    assert boxes == {(left, 0, 10, 10) for left in range(21)}


@pytest.mark.parametrize("scale, ratio", [((0.08, 1.0), (3 / 4, 4 / 3)), ((0.3, 0.5), (0.5, 3))])
@pytest.mark.parametrize("shape", [(320, 240), (240, 320), (300, 200), (200, 300), (640, 40), (2, 99), (64, 64)])
def test_the_random_resized_crop_is_torchvisions(repeat, scale, ratio, shape):
    picture = noise(*shape)
    tensor = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    settings = config(
        augmentation="random_resized_crop", random_resized_crop=RandomResizedCropConfig(scale=scale, ratio=ratio)
    )
    for key in range(20):
        draws = RecordedDraws(key)
        ours = augment(np.array(picture), settings, image(48), draws)
        for drawn in draws.places.values():
            drawn.reverse()  # torchvision draws the top before the left
        repeat(draws)
        crop = v2.RandomResizedCrop(48, scale=scale, ratio=ratio, interpolation=v2.InterpolationMode.BICUBIC)
        assert np.array_equal(ours, crop(tensor))


@pytest.mark.parametrize("ratio, shape", [((0.1, 0.2), (99, 1)), ((5, 9), (1, 99))])
def test_a_crop_of_a_thin_strip_has_at_least_one_pixel(ratio, shape):
    assert random_rectangle(*shape, RandomResizedCropConfig(ratio=ratio), Draws(0))[2:] == (1, 1)


def test_a_flip_is_torchvisions_and_happens_as_often_as_asked():
    picture, settings = np.array(noise(32, 32)), config(horizontal_flip_probability=0.3)
    straight = picture.transpose(2, 0, 1)
    mirrored = v2.functional.horizontal_flip(torch.from_numpy(straight.copy())).numpy()
    number = 0
    for key in range(1000):
        square = augment(picture, settings, image(32), Draws(key))
        number += np.array_equal(square, mirrored)
        assert np.array_equal(square, mirrored) or np.array_equal(square, straight)
    assert 250 < number < 350


@pytest.mark.parametrize("amounts", [{"brightness": 0.4}, {"contrast": 1.5}, {"saturation": 0.4}, {"hue": 0.5}])
def test_one_change_of_the_colours_is_torchvisions(repeat, amounts):
    picture, settings = photograph(48, 48), config(colour_jitter=ColourJitterConfig(**amounts))
    for key in range(20):
        draws = RecordedDraws(key)
        ours = augment(np.array(picture), settings, image(48), draws)
        repeat(draws, order=range(4))
        assert np.array_equal(channels_last(ours), v2.ColorJitter(**amounts)(picture))


@pytest.mark.filterwarnings("ignore:Unused augmentation cfg items")  # open_clip's warning is mistaken
def test_all_changes_of_the_colours_together_are_open_clips(repeat):
    """The picture has the tower's size, since open_clip crops and resizes with Pillow."""
    from open_clip import image_transform

    picture = photograph(48, 48)
    amounts = {"brightness": 0.32, "contrast": 0.32, "saturation": 0.32, "hue": 0.08}
    settings = config(
        **WHOLE_PICTURE, colour_jitter=ColourJitterConfig(probability=0.8, **amounts), grey_probability=0.2
    )
    aug_cfg = {
        "scale": (1, 1),
        "color_jitter": tuple(amounts.values()),
        "color_jitter_prob": 0.8,
        "gray_scale_prob": 0.2,
    }
    transform = image_transform(48, True, mean=(0, 0, 0), std=(1, 1, 1), aug_cfg=aug_cfg)
    seen = set()
    for key in range(60):
        draws = RecordedDraws(key)
        ours = augment(np.array(picture), settings, image(48), draws)
        order = order_of_changes(draws, len(amounts))
        seen.add(tuple(order))
        put_factors_in_the_order_of_the_settings(draws, order)
        repeat(draws, order)
        assert np.array_equal(ours, (transform(picture) * 255).round().numpy())
    assert len(seen) > 15


def order_of_changes(draws, number):
    """The order that was drawn for the changes of one picture."""
    left, order = list(range(number)), []
    if number in draws.places:
        while left:
            order.append(left.pop(draws.places[len(left)].popleft()))
    return order


def put_factors_in_the_order_of_the_settings(draws, order):
    """torchvision draws the factors before it changes anything; we draw each when it is needed."""
    if order:
        first = 3  # after scale, ratio and probability
        factors = dict(zip(order, list(draws.uniforms)[first : first + len(order)], strict=True))
        for place in order:
            draws.uniforms[first + place] = factors[place]


def test_erasing_is_torchvisions(repeat):
    picture, settings = noise(48, 40), RandomErasingConfig(probability=0.7)
    unchanged = augment(np.array(picture), config(augmentation="none"), image(32), Draws(0))
    erased = 0
    for key in range(40):
        draws = RecordedDraws(key)
        ours = augment(np.array(picture), config(augmentation="none", random_erasing=settings), image(32), draws)
        if 1 in draws.places:
            draws.places[1].popleft()  # how many rectangles
        repeat(draws)
        theirs = v2.RandomErasing(p=0.7, scale=settings.scale, ratio=settings.ratio)(torch.full((3, 32, 32), 1))
        assert np.array_equal(ours[theirs == 1], unchanged[theirs == 1])
        is_erased = (theirs == 0).numpy()
        assert (ours != unchanged)[is_erased].mean() > 0.9 if is_erased.any() else np.array_equal(ours, unchanged)
        erased += is_erased.any()
    assert 20 < erased < 36


def test_several_rectangles_are_erased_as_in_timm(repeat):
    settings = RandomErasingConfig(probability=1.0, max_rectangles=4, scale=(0.02, 1 / 3), ratio=(0.3, 1 / 0.3))
    picture = np.zeros((32, 32, 3), dtype=np.uint8)
    for key in range(20):
        draws = RecordedDraws(key)
        ours = augment(picture, config(augmentation="none", random_erasing=settings), image(32), draws)
        draws.uniforms.appendleft(0)  # timm draws whether to erase even if that is certain
        repeat(draws)
        theirs = TimmRandomErasing(1.0, mode="const", max_count=4, device="cpu")(torch.ones(3, 32, 32))
        assert not ours[theirs == 1].any()
        assert (ours[theirs == 0] > 0).mean() > 0.95


def test_erased_pixels_have_every_value():
    settings = RandomErasingConfig(probability=1.0, scale=(0.5, 0.5), ratio=(1, 1))
    square = augment(np.zeros((224, 224, 3), dtype=np.uint8), config(random_erasing=settings), image(224), Draws(0))
    counts = np.bincount(square.ravel(), minlength=256)[1:]
    assert counts.min() > 200 and counts.max() < 400  # 75,000 values, 293 of each
