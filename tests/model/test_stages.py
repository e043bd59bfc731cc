"""A model that is trained on pictures and captions of other sizes than its own."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.layers import resample_abs_pos_embed
from torch.utils.flop_counter import FlopCounterMode

from diptych.config.load import load_config
from diptych.config.schema import ImageTowerConfig, ModelConfig, RunConfig, StageConfig, TextTowerConfig
from diptych.config.stages import stages_of
from diptych.errors import UserError
from diptych.model.dual_encoder import DualEncoder, shapes_of, without_memory
from diptych.model.flops import TrainingFlops
from diptych.model.image_tower import ImageTower, check_picture_size

CONFIGS = Path(__file__).parents[2] / "configs"
VIT = ImageTowerConfig(
    name="vit_base_patch32_clip_224",
    image_size=64,
    overrides={"patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2},
)
BLOCKS = [{"type": "bottle", "d": 1, "c": 64 * 2**stage, "s": min(stage + 1, 2), "br": 0.25} for stage in range(4)]
RESNET = ImageTowerConfig(
    name="resnet50_clip", image_size=128, overrides={"blocks": BLOCKS, "stem_chs": [8, 8, 16], "width_factor": 0.25}
)


def in_stages(model: ModelConfig, *written: dict[str, Any]) -> RunConfig:
    """A run on this model whose first stages are these, of 100 samples each."""
    words = ["run_dir=run", "data.train=shards", "training.total_samples=1000", "training.global_batch_size=10"]
    config = load_config([], words).config
    stages = (*(StageConfig(samples=100, **stage) for stage in written), StageConfig())
    return replace(config, model=model, training=replace(config.training, stages=stages))


def tower(config: ImageTowerConfig, *written: dict[str, Any]) -> ImageTower:
    torch.manual_seed(0)
    return ImageTower(config, 16, stages_of(in_stages(ModelConfig(image=config), *written)))


def pictures(size: int) -> torch.Tensor:
    return torch.randint(0, 256, (3, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("size", [32, 48, 96])
def test_positions_for_pictures_of_another_size_are_those_that_timm_resamples(size):
    staged = tower(VIT, {"image_size": size})
    native = ImageTower(replace(VIT, image_size=size), 16)
    state = dict(staged.state_dict())
    grid = size // 8
    state["trunk.pos_embed"] = resample_abs_pos_embed(
        state["trunk.pos_embed"], new_size=[grid, grid], old_size=[8, 8], num_prefix_tokens=1
    )
    native.load_state_dict(state)
    assert torch.equal(staged(pictures(size)), native(pictures(size)))


@pytest.mark.parametrize("size", [64, 160])
def test_attention_pooling_resamples_its_positions_as_timm_does(size):
    staged = tower(RESNET, {"image_size": size}).eval()
    native = ImageTower(replace(RESNET, image_size=size), 16).eval()
    state = dict(staged.state_dict())
    grid, own = (int(len(each.trunk.head.pos_embed) ** 0.5) for each in (native, staged))
    assert grid != own
    positions = state["trunk.head.pos_embed"][None]
    state["trunk.head.pos_embed"] = resample_abs_pos_embed(positions, [grid, grid], [own, own])[0]
    native.load_state_dict(state)
    assert torch.equal(staged(pictures(size)), native(pictures(size)))


@pytest.mark.parametrize("config", [VIT, RESNET], ids=lambda config: config.name)
def test_a_tower_with_stages_has_the_weights_and_features_of_one_without(config):
    staged, plain = tower(config, {"image_size": 96}), tower(config)
    assert shapes_of(staged) == shapes_of(plain)
    assert all(map(torch.equal, staged.state_dict().values(), plain.state_dict().values()))
    images = pictures(config.image_size)
    assert torch.equal(staged(images), plain(images))


def test_gradients_reach_all_position_embeddings_through_the_resampling():
    staged = tower(VIT, {"image_size": 32})
    staged(pictures(32)).square().sum().backward()
    assert (staged.trunk.pos_embed.grad.abs().sum(-1) > 0).all()


def test_patch_dropout_of_a_stage_is_that_of_a_tower_made_for_it():
    keys = torch.arange(3)
    staged = tower(VIT, {"patch_dropout": 0.5})
    dropping = tower(replace(VIT, overrides={**VIT.overrides, "patch_drop_rate": 0.5}))
    for share, other in ((0.5, dropping), (0.0, tower(VIT))):
        staged.leave_out_patches(share)
        assert torch.equal(staged(pictures(64), keys), other(pictures(64), keys))


@pytest.mark.parametrize(
    ("config", "stage", "message"),
    [
        (VIT, {"image_size": 44}, r"size 44 is not a multiple of the patch size 8 of .* set 40 or 48"),
        (
            ImageTowerConfig(name="mixer_s32_224"),
            {"image_size": 96},
            r"size 96: mixer_s32_224 cannot take pictures of this size .* designed for, 224",
        ),
        (RESNET, {"patch_dropout": 0.5}, "resnet50_clip has no patch dropout; leave out patch_dropout"),
    ],
)
def test_a_stage_that_the_tower_cannot_take_is_refused(config, stage, message):
    run = in_stages(ModelConfig(image=config), stage)
    with pytest.raises(UserError, match=message):
        stages = stages_of(run)
        check_picture_size(stages[0].model.image, without_memory(run.model, 100, stages=stages).image, "size")


def test_a_shorter_context_uses_the_first_positions():
    text = TextTowerConfig(context_length=20, width=32, heads=2, layers=1)
    model = DualEncoder(ModelConfig(image=VIT, text=text), 100, 2.6)
    tokens, lengths = torch.randint(1, 100, (4, 20)), torch.tensor([8, 3, 5, 8])
    assert torch.equal(model.encode_text(tokens[:, :8], lengths), model.encode_text(tokens, lengths))


@pytest.mark.parametrize(
    ("recipe", "stage"),
    [
        ("vit_b_32", {"image_size": 128, "context_length": 16, "patch_dropout": 0.5}),
        ("demo", {"image_size": 24, "context_length": 8}),
    ],
)
def test_flops_of_a_stage_are_those_that_torch_counts(recipe, stage):
    model = load_config([CONFIGS / f"{recipe}.yaml"]).config.model
    stages = stages_of(in_stages(model, stage))
    size, length = stages[0].model.image.image_size, stages[0].model.text.context_length
    whole = without_memory(model, 49_408, stages=stages).train()
    whole.image.leave_out_patches(stages[0].patch_dropout)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        images = torch.empty(2, 3, size, size, dtype=torch.uint8, device="meta")
        whole.image(images, torch.empty(2, dtype=torch.int64, device="meta"))
        whole.text(torch.empty(2, length, dtype=torch.int32, device="meta"), torch.tensor([length, length]))
    of_pair = TrainingFlops(stages[0].model, 49_408).of_pair(length)
    assert 2 * of_pair == 3 * counter.get_total_flops(), "the backward takes twice as many as the forward"
