"""Of equal blocks one is computed, and what a model costs is what all of them cost."""

import pytest
import torch
from torch import nn

from diptych.config.schema import ImageTowerConfig, ModelConfig, TextTowerConfig
from diptych.model import repeated_blocks
from diptych.model.activations import activations
from diptych.model.flops import TrainingFlops
from diptych.model.repeated_blocks import each_kind_once

VIT = {"patch_size": 16, "embed_dim": 32, "depth": 4, "num_heads": 2}


class Scaled(nn.Module):
    def __init__(self, factor: float, width: int = 4) -> None:
        super().__init__()
        self.factor = factor
        self.linear = nn.Linear(width, 4)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.linear(inputs) * self.factor


def test_the_first_of_each_kind_is_computed_and_the_others_get_its_cost():
    blocks = [Scaled(1.0), Scaled(1.0), Scaled(2.0), Scaled(1.0), Scaled(1.0, width=3), Scaled(1.0).eval()]
    blocks[3].requires_grad_(False)
    computed, repeats = [], []

    def measured(block, compute, inputs):
        computed.append(block)
        return compute(), f"cost of {blocks.index(block)}"

    def repeated(block, cost, inputs, output):
        repeats.append((block, cost))
        assert output.shape == (2, 4) and output.requires_grad and not output.is_leaf

    with each_kind_once(blocks, measured, repeated):
        for block in blocks:
            block(torch.ones(2, block.linear.in_features))
        blocks[1](torch.ones(3, 4))
    assert computed == [blocks[0], *blocks[2:], blocks[1]]
    assert repeats == [(blocks[1], "cost of 0")]
    assert torch.equal(blocks[1](torch.ones(2, 4)), blocks[1].linear(torch.ones(2, 4))), "and is itself again"


@pytest.mark.parametrize(
    ("name", "size", "overrides"),
    [
        ("vit_base_patch32_clip_224", 32, VIT),
        ("vit_base_patch32_clip_224", 32, {**VIT, "drop_path_rate": 0.1, "patch_drop_rate": 0.5}),
        ("swin_tiny_patch4_window7_224", 56, {"depths": (4,), "embed_dim": 24, "num_heads": (2,)}),
        ("resnet18", 32, {"layers": (3, 1, 1, 1), "channels": (8, 8, 16, 16)}),
    ],
)
def test_a_tower_costs_what_all_of_its_blocks_cost(name, size, overrides, monkeypatch):
    image, text = ImageTowerConfig(name=name, image_size=size, overrides=overrides), TextTowerConfig(layers=3)
    config = ModelConfig(embed_dim=32, image=image, text=text, freeze=("text.transformer.resblocks.0.*",))

    def costs():
        return TrainingFlops(config, 100).of_pair(20), activations(config, 100, "cuda", "bf16")

    by_kinds = costs()
    monkeypatch.setattr(repeated_blocks, "_structure", lambda block: object())
    assert costs() == by_kinds
