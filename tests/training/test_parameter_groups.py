"""Which parameters are decayed, at which rate they learn, and which belong to Muon."""

from dataclasses import replace

import open_clip
import pytest

from diptych.config.schema import ImageTowerConfig, ModelConfig, OptimizerConfig, TextTowerConfig, TokenHeadConfig
from diptych.errors import UserError
from diptych.model.dual_encoder import DualEncoder, without_memory
from diptych.model.freezing import freeze
from diptych.model.open_clip_layout import to_open_clip
from diptych.training.checks import check_run
from diptych.training.parameter_groups import (
    SCALE_GROUP,
    describe_muon,
    hidden_matrices,
    parameter_groups,
    refuse_idle_muon,
)
from diptych.world import World
from tests.training.tiny import tiny_config

TEXT = TextTowerConfig(context_length=8, width=32, heads=2, layers=1, activation="gelu")
VIT = ImageTowerConfig(
    name="vit_base_patch32_clip_224",
    image_size=16,
    overrides={"patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2},
)
RESNET = ImageTowerConfig(
    name="resnet50_clip",
    image_size=64,
    overrides={
        "blocks": [{"type": "bottle", "d": 1, "c": 32 * 2**n, "s": 1 + (n > 0), "br": 0.25} for n in range(4)],
        "stem_chs": [8, 8, 16],
    },
)


def names_by_decay(image):
    model = DualEncoder(ModelConfig(embed_dim=16, image=image, text=TEXT), 50, 2.6)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, OptimizerConfig(weight_decay=0.2))
    found = {names[id(p)]: group["weight_decay"] for group in groups for p in group["params"]}
    assert found.keys() == dict(model.named_parameters()).keys()
    [scale] = [group for group in groups if group["name"] == SCALE_GROUP]
    assert len(scale["params"]) == 1
    return model, found


def test_decay_falls_on_the_parameters_that_open_clip_decays():
    model, found = names_by_decay(VIT)
    # Our parameter's place in open_clip's layout is found by giving each a value of its own.
    state = {name: tensor * 0 + number for number, (name, tensor) in enumerate(model.state_dict().items())}
    config = ModelConfig(embed_dim=16, image=VIT, text=TEXT)
    theirs = {name: float(tensor.float().mean()) for name, tensor in to_open_clip(state, config).items()}
    numbers = {name: number for number, name in enumerate(model.state_dict())}
    reference = open_clip.CLIP(
        embed_dim=16,
        vision_cfg={"image_size": 16, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16},
        text_cfg={"context_length": 8, "vocab_size": 50, "width": 32, "heads": 2, "layers": 1},
    )

    def is_decayed_by_open_clip(name, parameter):
        return not (parameter.ndim < 2 or any(word in name for word in ("bn", "ln", "bias", "logit_scale")))

    decayed = {theirs[name] for name, p in reference.named_parameters() if is_decayed_by_open_clip(name, p)}
    ours = {numbers[name] for name, decay in found.items() if decay}
    assert ours == decayed


def test_gains_and_biases_of_a_resnet_are_not_decayed():
    model, found = names_by_decay(RESNET)
    for name, parameter in model.named_parameters():
        assert (found[name] > 0) == (parameter.ndim >= 2), name


def rates_and_decays(image=VIT, freeze_patterns=(), **optimizer):
    """Name → factor on the learning rate, and weight decay."""
    model = DualEncoder(ModelConfig(embed_dim=16, image=image, text=TEXT), 50, 2.6)
    freeze(model, freeze_patterns)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, OptimizerConfig(weight_decay=0.2, **optimizer))
    return {names[id(p)]: (g["learning_rate_scale"], g["weight_decay"]) for g in groups for p in g["params"]}


def test_a_pattern_changes_rate_and_decay_of_what_it_matches_and_the_last_one_decides():
    plain = rates_and_decays()
    found = rates_and_decays(
        groups={
            "image.*": {"learning_rate_scale": 0.1, "weight_decay": 0.5},
            "image.proj": {"learning_rate_scale": 3.0},
        }
    )
    for name, (rate, decay) in found.items():
        expected = 1.0 if not name.startswith("image.") else 3.0 if name == "image.proj" else 0.1
        assert rate == expected, name
        assert decay == (0.5 if name.startswith("image.") and plain[name][1] else plain[name][1]), name


def test_the_rate_falls_by_layers_from_the_projection_down_to_the_embeddings():
    two = replace(VIT, overrides={**VIT.overrides, "depth": 2})
    found = rates_and_decays(image=two, layer_decay=0.5, groups={"text.ln_final.bias": {"learning_rate_scale": 3.0}})
    rates = {name: rate for name, (rate, _) in found.items()}
    assert rates["image.proj"] == rates["image.trunk.norm.weight"] == rates["text.text_projection"] == 1.0
    assert rates["text.ln_final.bias"] == 3.0, "a pattern's factor is multiplied in"
    assert rates["logit_scale"] == 1.0
    assert {rate for name, rate in rates.items() if ".blocks.1." in name} == {0.5}
    assert {rate for name, rate in rates.items() if ".blocks.0." in name} == {0.25}
    embeddings = ("image.trunk.cls_token", "image.trunk.pos_embed", "image.trunk.patch_embed.proj.weight")
    assert {rates[name] for name in embeddings} == {0.125}
    assert {rate for name, rate in rates.items() if ".resblocks.0." in name} == {0.5}
    assert rates["text.token_embedding.weight"] == rates["text.positional_embedding"] == 0.25


def test_muon_gets_the_matrices_inside_blocks_and_the_kernels_that_mix_channels():
    model = DualEncoder(ModelConfig(embed_dim=16, image=RESNET, text=TEXT), 50, 2.6)
    convolutions = [name for name in hidden_matrices(model) if name.startswith("image.")]
    assert "image.trunk.stages.0.0.conv2_kxk.conv.weight" in convolutions
    assert not [name for name in convolutions if "stem" in name or "head" in name or "attnpool" in name]
    depthwise = ImageTowerConfig(name="convnext_atto", image_size=32)
    model = DualEncoder(ModelConfig(embed_dim=16, image=depthwise, text=TEXT), 50, 2.6)
    convolutions = [name for name in hidden_matrices(model) if name.startswith("image.")]
    assert convolutions and all(".mlp." in name for name in convolutions)


def test_a_line_counts_the_matrices_of_muon_and_a_model_without_any_is_refused():
    without_blocks = ImageTowerConfig(name="vgg11", image_size=32)
    model = without_memory(ModelConfig(embed_dim=16, image=without_blocks, text=TEXT), 50)
    # Attention's two matrices, and the two of the MLP, which is four times as wide.
    said = f"{12 * 32**2 / 1e6:.2f} M parameters, the matrices in known blocks: image tower (VGG) 0, text tower 4"
    assert describe_muon(model) == f"Muon updates {said}"
    refuse_idle_muon(model)
    freeze(model, ["text.*"])
    with pytest.raises(UserError, match=r"^optimizer.name muon would update nothing: .* \(VGG\), not known by name"):
        refuse_idle_muon(model)


@pytest.mark.parametrize(("pattern", "refused"), [("image.*", True), ("image.trunk.*", True), ("text.*", False)])
def test_a_token_head_that_trains_only_itself_is_refused_before_a_run(tmp_path, pattern, refused):
    config = tiny_config()
    config = replace(
        config,
        run_dir=str(tmp_path / "run"),
        model=replace(config.model, freeze=(pattern,)),
        loss=replace(config.loss, token_head=TokenHeadConfig(weight=1.0)),
    )
    said = [each for key, each in check_run(config, World()) if key == "loss.token_head.weight"]
    assert [each.partition(":")[0] for each in said] == (
        ["loss.token_head.weight would train only the token head, which the finished model does not have"]
        if refused
        else []
    )


def test_a_run_in_which_muon_would_update_nothing_is_refused_before_it_starts(tmp_path):
    config = tiny_config()
    config = replace(
        config,
        run_dir=str(tmp_path),
        model=replace(config.model, freeze=("image.*", "text.*")),
        optimizer=replace(config.optimizer, name="muon"),
    )
    assert "muon would update nothing" in dict(check_run(config, World()))["optimizer.name"]


def test_a_pattern_that_matches_nothing_is_one_line_with_near_names():
    with pytest.raises(UserError, match=r"^optimizer.groups 'imag\.\*' matches no tensor .* near it are image\.\*"):
        rates_and_decays(groups={"imag.*": {"weight_decay": 0.0}})
    with pytest.raises(
        UserError, match=r"^model.freeze 'text\.projection' matches .* near it are text.text_projection"
    ):
        rates_and_decays(freeze_patterns=["text.projection"])
    with pytest.raises(UserError, match=r"^model.freeze \['\*'\] freezes every parameter"):
        rates_and_decays(freeze_patterns=["*"])


def test_frozen_parameters_are_in_no_group():
    found = rates_and_decays(freeze_patterns=["image.*"])
    assert found and not [name for name in found if name.startswith("image.")]
