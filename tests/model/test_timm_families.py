"""Every family of timm makes an image tower that learns, and picture sizes that it cannot take are refused early."""

import pytest
import timm
import torch
from timm.models import list_modules

from diptych.config.schema import ImageTowerConfig
from diptych.errors import UserError
from diptych.model.image_tower import ImageTower, check_picture_size
from tests.ranks import run_ranks


def smallest_of(family: str) -> str | None:
    """A model of the family that is small, judging by its name."""
    names = timm.list_models(module=family)
    small = ("femto", "atto", "pico", "nano", "tiny", "_t0", "_m0", "_s0", "xxs", "_xs", "small", "18", "_s12", "_s")
    return next((name for word in small for name in names if word in name), names[0] if names else None)


LARGEST_PICTURE = 256
"""Pixels of a side; families made for 1,024 pixels would take minutes, and are tested at 224."""


def tower_of(name: str) -> tuple[ImageTower, int]:
    trained = timm.get_pretrained_cfg(name)
    size = trained.input_size[-1] if trained else 224
    if size > LARGEST_PICTURE:
        size = 224
    return ImageTower(ImageTowerConfig(name=name, image_size=size), 8), size


def assert_learns(rank: int, name: str) -> None:
    tower, size = tower_of(name)
    with torch.device("meta"):
        check_picture_size(ImageTowerConfig(name=name, image_size=size), tower_of(name)[0])
    pictures = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    features = tower(pictures)
    assert features.shape == (2, 8)
    features.square().sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in tower.parameters())


@pytest.mark.families
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("family", [family for family in list_modules() if smallest_of(family)])
def test_every_family_learns(family):
    # In a process of its own, so that a crash of one family does not end the others.
    run_ranks(1, assert_learns, smallest_of(family))


@pytest.mark.parametrize(("name", "layout"), [("resnet10t", "channels_last"), ("fastvit_t8", "contiguous_format")])
def test_grouped_convolutions_on_a_cpu_get_the_layout_whose_backward_is_sound(name, layout):
    tower = ImageTower(ImageTowerConfig(name=name, image_size=64), 8).eval()
    seen = []
    tower.trunk.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    tower(torch.zeros(2, 3, 64, 64, dtype=torch.uint8))
    assert seen[0].is_contiguous(memory_format=getattr(torch, layout))


@pytest.mark.parametrize("name", ["poolformer_s12", "xcit_nano_12_p16_224", "efficientvit_m0", "ese_vovnet19b_dw"])
def test_towers_whose_constructors_differ_are_built(name):
    with torch.device("meta"):
        tower, size = tower_of(name)
        assert (tower.trunk(torch.zeros(2, 3, size, size)) @ tower.proj).shape == (2, 8)


@pytest.mark.parametrize(
    ("name", "size", "overrides"),
    [
        ("convnext_atto", 16, {}),
        ("naflexvit_base_patch16_gap", 40, {"depth": 1}),
        ("inception_v3", 64, {}),
        ("levit_128s", 200, {}),
    ],
)
def test_a_size_that_a_tower_cannot_take_is_refused_in_one_line(name, size, overrides):
    config = ImageTowerConfig(name=name, image_size=size, overrides=overrides)
    with torch.device("meta"), pytest.raises(UserError, match=f"model.image.image_size {size}") as refusal:
        check_picture_size(config, ImageTower(config, 8))
    assert "\n" not in str(refusal.value)
