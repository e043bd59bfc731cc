"""Both towers together: unit features in fp32, a temperature of shape [1], and weights that must fit."""

import math
from dataclasses import replace

import pytest
import timm
import torch

from diptych.config.schema import ImageTowerConfig, ModelConfig, TextTowerConfig
from diptych.errors import UserError
from diptych.model.dual_encoder import (
    DualEncoder,
    checkpoint_blocks,
    expected_shapes,
    load_weights,
    model_of,
    rank_dependence,
    without_memory,
)

CONFIG = ModelConfig(
    embed_dim=24,
    image=ImageTowerConfig(
        name="vit_base_patch32_clip_quickgelu_224",
        image_size=32,
        overrides={"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2},
    ),
    text=TextTowerConfig(context_length=16, width=32, heads=2, layers=2),
)


def dual_encoder():
    torch.manual_seed(0)
    return DualEncoder(CONFIG, 50, math.log(1 / 0.07))


def batch(size=4):
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (size, 3, 32, 32), dtype=torch.uint8, generator=generator)
    tokens = torch.randint(1, 50, (size, 16), generator=generator, dtype=torch.int32)
    return images, tokens, torch.randint(2, 17, (size,), generator=generator, dtype=torch.int32)


@pytest.mark.parametrize("precision", [torch.float32, torch.float16])
@pytest.mark.parametrize("name", ["vit_base_patch32_clip_quickgelu_224", "resnet10t", "swin_tiny_patch4_window7_224"])
def test_a_model_made_of_tensors_is_the_one_they_were_copied_into(name, precision):
    small = {"depths": (1, 1), "embed_dim": 24, "num_heads": (1, 2)} if name.startswith("swin") else {}
    image = ImageTowerConfig(name=name, image_size=56, overrides=small) if name != CONFIG.image.name else CONFIG.image
    config, draw = replace(CONFIG, image=image), torch.Generator().manual_seed(2)
    copied = DualEncoder(config, 50, 1.0).eval()
    tensors = {n: 0.1 * torch.rand(each.shape, generator=draw) + 0.1 for n, each in copied.state_dict().items()}
    state = {n: each.to(precision) for n, each in tensors.items()}
    load_weights(copied, state)

    made = model_of(config, 50, state).eval()
    images = torch.randint(0, 256, (2, 3, image.image_size, image.image_size), dtype=torch.uint8, generator=draw)
    _, tokens, lengths = batch(2)
    for one, other in zip(made(images, tokens, lengths), copied(images, tokens, lengths), strict=True):
        assert one.dtype == torch.float32 and one.equal(other)
    own = made.state_dict()
    if precision == torch.float32:
        assert own["text.token_embedding.weight"].data_ptr() == state["text.token_embedding.weight"].data_ptr()


@pytest.mark.parametrize("autocast", [False, True])
def test_features_are_fp32_of_unit_norm_also_under_autocast(autocast):
    model = dual_encoder()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        features = model(*batch())
    for each in features:
        assert each.dtype == torch.float32 and each.shape == (4, 24)
        # fp32 rounding; norms of bf16 numbers would be off by 1e-3.
        torch.testing.assert_close(each.norm(dim=-1), torch.ones(4), rtol=0, atol=1e-6)


def test_autocast_computes_the_same_model():
    model = dual_encoder()
    exact = model(*batch())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = model(*batch())
    for one, other in zip(exact, rounded, strict=True):
        assert (one * other).sum(-1).min() > 0.999  # bf16 has 8 bits
        assert not torch.equal(one, other)


def test_the_last_projection_is_fp32_under_autocast():
    model = dual_encoder()
    images, tokens, lengths = batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for features in (model.image(images), model.text(tokens, lengths)):
            assert features.dtype == torch.float32
            assert not torch.equal(features, features.bfloat16().float())


def test_blocks_that_are_checkpointed_keep_little_and_have_equal_gradients():
    kept, gradients = [], []
    for checkpointed in (False, True):
        model = dual_encoder().train()
        if checkpointed:
            checkpoint_blocks(model)
        held: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, held=held: held.append(t.nbytes) or t, lambda t: t):
            image, text = model(*batch())
        (image @ text.T).square().sum().backward()
        kept.append(sum(held))
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert kept[1] < kept[0] / 2
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


def test_towers_whose_blocks_cannot_be_checkpointed_are_refused_by_name():
    for name, why in (("resnet18", "batch normalisation"), ("sequencer2d_s", "does not support it")):
        config = replace(CONFIG, image=ImageTowerConfig(name=name, image_size=224))
        with pytest.raises(UserError, match=f"machine.checkpoint_blocks: .*{why}"):
            checkpoint_blocks(without_memory(config, 50))


def test_logit_scale_starts_at_the_given_value_and_has_a_dimension():
    model = dual_encoder()
    assert model.logit_scale.shape == (1,) and model.logit_scale.dtype == torch.float32
    assert model.logit_scale.item() == pytest.approx(2.6593, abs=1e-4)
    assert model.logit_bias is None


def test_every_parameter_takes_part_and_has_a_dimension():
    model = dual_encoder()
    image, text = model(*batch())
    (model.logit_scale.exp() * image @ text.T).square().sum().backward()
    assert all(parameter.grad is not None and parameter.ndim > 0 for parameter in model.parameters())


def test_the_shapes_of_a_model_are_known_without_building_it():
    state = dual_encoder().state_dict()
    assert expected_shapes(CONFIG, 50) == {name: tuple(tensor.shape) for name, tensor in state.items()}


def test_weights_that_do_not_fit_are_refused_by_name():
    model, state = dual_encoder(), dual_encoder().state_dict()
    with pytest.raises(ValueError, match=r"image\.proj has shape \[32, 9\], expected \[32, 24\]"):
        load_weights(model, {**state, "image.proj": torch.zeros(32, 9)})
    with pytest.raises(ValueError, match=r"tensor extra is not part of this model"):
        load_weights(model, {**state, "extra": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"image\.proj contains torch\.int64"):
        load_weights(model, {**state, "image.proj": state["image.proj"].long()})
    del state["image.proj"]
    with pytest.raises(ValueError, match=r"image\.proj is missing"):
        load_weights(model, state)


def test_only_batch_statistics_on_several_ranks_are_worth_a_warning():
    with torch.device("meta"):
        resnet = timm.create_model("resnet18", num_classes=0)
    assert rank_dependence(dual_encoder().state_dict(), 8) is None
    assert rank_dependence(resnet.state_dict(), 1) is None
    assert "the rows of each of the 8 ranks" in (rank_dependence(resnet.state_dict(), 8) or "")
