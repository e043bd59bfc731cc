"""Image towers of every family that a config can name, and the errors for those that it cannot."""

import re

import pytest
import torch
from open_clip.modified_resnet import ModifiedResNet

from diptych.config.schema import ImageTowerConfig
from diptych.model.image_tower import ImageTower
from diptych.model.trunk import create_trunk

VIT = "vit_base_patch32_clip_224"
SMALL_VIT = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
SMALL_CLIP_RESNET = {
    "blocks": [
        {"type": "bottle", "d": 1, "c": channels, "s": stride, "br": 0.25}
        for channels, stride in ((64, 1), (64, 2), (128, 2), (128, 2))
    ],
    "stem_chs": [8, 8, 16],
}


def tower(name=VIT, image_size=32, output_dim=24, **overrides):
    torch.manual_seed(0)
    return ImageTower(ImageTowerConfig(name=name, image_size=image_size, overrides=overrides), output_dim)


def pictures(image_size, batch=2):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (batch, 3, image_size, image_size), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize(
    "name, image_size, overrides",
    [
        (VIT, 32, SMALL_VIT),
        ("vit_base_patch32_clip_quickgelu_224", 48, SMALL_VIT),
        ("vit_base_patch16_siglip_224", 32, SMALL_VIT),
        ("resnet50_clip", 64, SMALL_CLIP_RESNET),
        ("resnet50_clip_gap", 64, SMALL_CLIP_RESNET),
        ("resnet18", 32, {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}),
        ("convnext_atto", 32, {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}),
        ("mobilenetv3_small_050", 32, {}),
    ],
)
def test_every_parameter_of_a_tower_of_any_family_takes_part(name, image_size, overrides):
    model = tower(name, image_size, **overrides)
    features = model(pictures(image_size))
    assert features.shape == (2, 24)
    features.square().sum().backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{parameter_name} is unused: ZeRO would wait for it"
        assert parameter.ndim > 0, f"{parameter_name} has no dimension: ZeRO cannot split it"


@pytest.mark.parametrize(
    "name, image_size, embed_dim, parameters",
    [
        ("vit_base_patch32_clip_224", 224, 512, 87_849_216),
        ("vit_base_patch16_clip_224", 224, 512, 86_192_640),
        ("vit_large_patch14_clip_224", 224, 768, 303_966_208),
        ("vit_large_patch14_clip_224", 336, 768, 304_293_888),
        ("resnet50_clip", 224, 1024, 38_316_896),
        ("resnet101_clip", 224, 512, 56_259_936),
        ("resnet50x4_clip", 288, 640, 87_137_080),
    ],
)
def test_the_papers_towers_have_the_papers_number_of_parameters(name, image_size, embed_dim, parameters):
    with torch.device("meta"):
        model = tower(name, image_size, embed_dim)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_a_clip_resnet_ends_in_its_attention_pooling():
    model = tower("resnet50_clip", 64, **SMALL_CLIP_RESNET)
    assert model.proj is None
    assert model.trunk.head.proj.weight.shape == (24, 128)


def test_a_clip_resnet_computes_what_openais_does():
    torch.manual_seed(0)
    theirs = ModifiedResNet(layers=(1, 2, 1, 1), output_dim=24, heads=8, image_size=64, width=16).eval()
    with torch.no_grad():
        for tensor in theirs.state_dict().values():
            if tensor.ndim == 1:  # change gains, biases, means and variances, so that none is 0 or 1
                tensor.uniform_(0.5, 1.5)
    blocks = [
        {"type": "bottle", "d": depth, "c": channels, "s": stride, "br": 0.25}
        for depth, channels, stride in ((1, 64, 1), (2, 128, 2), (1, 256, 2), (1, 512, 2))
    ]
    ours = tower("resnet50_clip", 64, blocks=blocks, stem_chs=[8, 8, 16]).trunk.eval()
    ours.load_state_dict({timm_resnet_name(name): tensor for name, tensor in theirs.state_dict().items()})
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        # fp32 rounding through some twenty layers, relative to the size of a feature.
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-5)


def timm_resnet_name(name):
    name = re.sub(r"^(conv|bn)(\d)", r"stem.conv\2.\1", name)
    name = re.sub(r"^layer(\d)", lambda found: f"stages.{int(found[1]) - 1}", name)
    for number, kernel in (("1", "1x1"), ("2", "kxk"), ("3", "1x1")):
        name = re.sub(rf"^(stages\S+\.)(conv|bn){number}\.", rf"\1conv{number}_{kernel}.\2.", name)
    name = name.replace("downsample.0", "shortcut.conv.conv").replace("downsample.1", "shortcut.conv.bn")
    name = name.replace("attnpool.positional_embedding", "head.pos_embed").replace("attnpool.c_proj", "head.proj")
    return re.sub(r"attnpool\.([qkv])_proj", r"head.\1", name)


def test_pixels_are_normalised_by_the_tower():
    torch.manual_seed(0)
    config = ImageTowerConfig(name=VIT, image_size=32, overrides=SMALL_VIT, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    model = ImageTower(config, 24)
    images = pictures(32)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (config.mean, config.std))
    torch.testing.assert_close(model(images), model.trunk((images / 255 - mean) / std) @ model.proj)

    # Bit by bit one subtraction and one division, whatever the order of the bytes, as a run that goes on must compute.
    seen = []
    model.trunk.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for layout in (torch.contiguous_format, torch.channels_last):
        model(images.contiguous(memory_format=layout))
        assert seen[-1].equal((images.float() - 255 * mean) / (255 * std))
        assert seen[-1].is_contiguous(memory_format=torch.channels_last)
    assert not {"mean", "std"} & model.state_dict().keys()


def test_pixels_that_are_not_uint8_are_refused():
    with pytest.raises(ValueError, match=r"images are torch\.float32, expected torch\.uint8"):
        tower(**SMALL_VIT)(torch.zeros(1, 3, 32, 32))


def test_a_transformer_starts_as_openais_does():
    width = 256
    model = tower(image_size=64, output_dim=128, **{**SMALL_VIT, "embed_dim": width, "num_heads": 4})
    trunk, block = model.trunk, model.trunk.blocks[1]
    uniform = 3**-0.5  # the deviation of a uniform distribution, in units of its bound
    deviations = {
        trunk.cls_token: width**-0.5,
        trunk.pos_embed: width**-0.5,
        model.proj: width**-0.5,
        trunk.patch_embed.proj.weight: uniform * (3 * 8 * 8) ** -0.5,
        block.attn.qkv.weight: uniform * (6 / (4 * width)) ** 0.5,
        block.attn.proj.weight: uniform * width**-0.5,
        block.mlp.fc1.weight: uniform * width**-0.5,
        block.mlp.fc2.weight: uniform * (4 * width) ** -0.5,
    }
    for parameter, expected in deviations.items():
        # Four standard errors of a deviation estimated from this many numbers.
        assert parameter.std().item() == pytest.approx(expected, rel=4 * (2 * parameter.numel()) ** -0.5)
    assert not block.attn.qkv.bias.any() and not block.attn.proj.bias.any()
    assert block.mlp.fc1.bias.any() and block.mlp.fc2.bias.any()
    assert block.attn.qkv.weight.abs().max() <= (6 / (4 * width)) ** 0.5


def test_a_clip_resnet_starts_as_openais_does():
    model = tower("resnet50_clip", 64, **SMALL_CLIP_RESNET)
    for stage in model.trunk.stages:
        for block in stage:
            assert not block.conv3_1x1.bn.weight.any()
    pool = model.trunk.head
    for parameter in (pool.q.weight, pool.k.weight, pool.v.weight, pool.proj.weight, pool.pos_embed):
        assert parameter.std().item() == pytest.approx(128**-0.5, rel=4 * (2 * parameter.numel()) ** -0.5)
    convolution = model.trunk.stem.conv2.conv.weight
    assert convolution.abs().max() <= (8 * 9) ** -0.5


@pytest.mark.parametrize(
    "name, overrides, complaint",
    [
        (
            "vit_base_patch32_clp_224",
            {},
            "'vit_base_patch32_clp_224' is not a timm model; the nearest is 'vit_base_p",
        ),
        ("hf-hub:someone/model", {}, "is not a timm model"),
        ("ViT-B-32", {}, "the nearest is 'vit_base_patch32_clip_224'"),
        ("ViT-L/14@336px", {}, "the nearest is 'vit_large_patch14_clip_quickgelu_336'"),
        ("ViT-H-14-378-quickgelu", {}, "the nearest is 'vit_huge_patch14_clip_quickgelu_378'"),
        ("RN50x4", {}, "the nearest is 'resnet50x4_clip'"),
        (VIT, {"depht": 3}, f"overrides.depht: {VIT} has no such keyword"),
        ("resnet18", {"layrs": [1]}, "overrides.layrs: resnet18 has no such keyword"),
        ("resnet50_clip", {"blokcs": []}, "overrides.blokcs: resnet50_clip has no such keyword"),
        ("resnet50_clip", {"blocks": [{"type": "bottle", "depth": 3}]}, "blocks of resnet50_clip: .*'depth'"),
        (VIT, {"embed_dim": 30, "num_heads": 4}, "'num_heads': 4}: dim should be divisible by num_heads"),
        (VIT, {"num_heads": 0}, "cannot be built with overrides {'num_heads': 0}"),
        ("resnet18", {"layers": [1]}, "cannot be built with overrides {'layers': .1.}"),
        (VIT, {"act_layer": "gleu"}, "cannot be built with overrides {'act_layer': 'gleu'}"),
        (VIT, {"img_size": 64}, "overrides.img_size cannot be set here: set model.image.image_size"),
        (VIT, {"num_classes": 5}, "set model.embed_dim"),
        (VIT, {"checkpoint_path": "evil.pt"}, "overrides.checkpoint_path is refused"),
        (VIT, {"pretrained": True}, "overrides.pretrained is refused"),
    ],
)
def test_a_tower_that_cannot_be_built_is_refused_by_name(name, overrides, complaint):
    with pytest.raises(ValueError, match=complaint.replace("{", r"\{").replace("}", r"\}")) as refusal:
        tower(name, **overrides)
    assert re.match("model.image", str(refusal.value))


def test_a_picture_size_that_patches_do_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"model\.image\.image_size 230 .* patch size 32 .*; set 224 or 256"):
        create_trunk(ImageTowerConfig(name=VIT, image_size=230, overrides={**SMALL_VIT, "patch_size": 32}))
    assert create_trunk(ImageTowerConfig(name=VIT, image_size=230, overrides={**SMALL_VIT, "dynamic_img_pad": True}))


def test_an_activation_may_be_named():
    model = tower(**SMALL_VIT, act_layer="quick_gelu")
    assert type(model.trunk.blocks[0].mlp.act).__name__ == "QuickGELU"
