"""Which parameters are decayed."""

import open_clip

from diptych.config.schema import ImageTowerConfig, ModelConfig, OptimizerConfig, TextTowerConfig
from diptych.model.dual_encoder import DualEncoder
from diptych.model.interop import to_open_clip
from diptych.training.parameter_groups import SCALE_GROUP, parameter_groups

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
