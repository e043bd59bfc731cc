"""Counted operations, compared with torch's count of a forward and a backward, and with published numbers."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from diptych.config.load import load_config
from diptych.config.schema import ImageTowerConfig, LossConfig, ModelConfig, TextTowerConfig, TokenHeadConfig
from diptych.model.dual_encoder import DualEncoder, without_memory
from diptych.model.flops import TrainingFlops
from diptych.model.freezing import freeze

CONFIGS = Path(__file__).parents[2] / "configs"
SMALL = ModelConfig(
    embed_dim=64,
    image=ImageTowerConfig(
        name="vit_base_patch32_clip_224",
        image_size=64,
        overrides={"patch_size": 8, "embed_dim": 64, "depth": 8, "num_heads": 2},
    ),
    text=TextTowerConfig(context_length=16, width=64, heads=2, layers=8),
)


@pytest.mark.parametrize(("num_tokens", "patch_drop_rate"), [(2, 0.5), (9, 0.0), (16, 0.5)])
def test_flops_of_a_pair_are_those_of_its_forward_and_backward(num_tokens, patch_drop_rate):
    overrides = {**SMALL.image.overrides, "patch_drop_rate": patch_drop_rate}
    config = replace(SMALL, image=replace(SMALL.image, overrides=overrides))
    model = DualEncoder(config, 100, 2.6)
    images, tokens = torch.zeros(3, 3, 64, 64, dtype=torch.uint8), torch.ones(3, 16, dtype=torch.int32)
    # torch does not count the CPU's own attention kernel.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        image, text = model(images, tokens, torch.full((3,), num_tokens), torch.arange(3))
        (image.sum() + text.sum()).backward()
    # The first layer needs no gradient of its input.
    assert 3 * TrainingFlops(config, 100).of_pair(num_tokens) == pytest.approx(counter.get_total_flops(), rel=0.03)


@pytest.mark.parametrize(
    ("name", "embed_dim", "width", "gigaflops"),
    [
        ("vit_base_patch32_clip_quickgelu_224", 512, 512, 14.78),
        ("vit_base_patch16_clip_quickgelu_224", 512, 512, 41.09),
        ("vit_large_patch14_clip_quickgelu_224", 768, 768, 175.33),
    ],
)
def test_flops_of_the_papers_models_are_three_times_open_clips_table(name, embed_dim, width, gigaflops):
    model = ModelConfig(
        embed_dim=embed_dim, image=ImageTowerConfig(name=name), text=TextTowerConfig(width=width, heads=width // 64)
    )
    # open_clip's docs/model_profile.csv: a forward with 77 tokens.
    assert TrainingFlops(model, 49408).of_pair(77) / 1e9 == pytest.approx(3 * gigaflops, rel=0.01)


RECIPES = {"demo", "vit_b_32"}
"""By day those that torch counts in a second; at night each model of a recipe."""
if os.environ.get("NIGHTLY"):
    RECIPES |= {path.stem for path in CONFIGS.glob("*.yaml")} - {"vit_b_32_fast", "vit_b_16_fast", "vit_l_14_fast"}


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_flops_of_a_recipe_are_those_that_torch_counts(recipe):
    config = load_config([CONFIGS / f"{recipe}.yaml"]).config.model
    model, size, length = without_memory(config, 49_408).train(), config.image.image_size, config.text.context_length
    with FlopCounterMode(display=False) as counter:
        picture = torch.empty(1, 3, size, size, dtype=torch.uint8, device="meta")
        image = model.image(picture, torch.empty(1, dtype=torch.int64, device="meta"))
        text = model.text(torch.empty(1, length, dtype=torch.int32, device="meta"), torch.tensor([length]))
        (image.sum() + text.sum()).backward()
    assert TrainingFlops(config, 49_408).of_pair(length) == pytest.approx(counter.get_total_flops(), rel=0.01)


@pytest.mark.parametrize("pattern", ["image.*", "image.trunk.*", "image.trunk.blocks.[0-5].*"])
def test_frozen_parameters_have_no_backward(pattern):
    """The gradient of an input is not needed below the first parameter that is trained."""
    frozen = replace(SMALL, freeze=(pattern, "image.trunk.[!bn]*"))
    model = DualEncoder(frozen, 100, 2.6)
    freeze(model, frozen.freeze)
    images, tokens = torch.zeros(3, 3, 64, 64, dtype=torch.uint8), torch.ones(3, 16, dtype=torch.int32)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        image, text = model(images, tokens, torch.full((3,), 9), torch.arange(3))
        (image.sum() + text.sum()).backward()
    assert 3 * TrainingFlops(frozen, 100).of_pair(9) == pytest.approx(counter.get_total_flops(), rel=0.03)


def test_a_layer_that_predicts_words_is_counted_and_no_text_tower_without_a_contrast():
    plain = TrainingFlops(SMALL, 100)
    with_head = TrainingFlops(SMALL, 100, LossConfig(token_head=TokenHeadConfig(weight=1)))
    assert with_head.of_pair(9) - plain.of_pair(9) == 3 * 2 * 64 * 100
    words = TrainingFlops(SMALL, 100, LossConfig(name="bag_of_words"))
    assert words.of_pair(2) == words.of_pair(16) < plain.of_pair(2)
