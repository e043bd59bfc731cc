import math
from dataclasses import replace

import open_clip
import pytest

from diptych.config.schema import ImageTowerConfig, ModelConfig, OptimizerConfig, TextTowerConfig
from diptych.model.dual_encoder import DualEncoder
from diptych.model.interop import to_open_clip
from diptych.training.optimizer import SCALE_GROUP, learning_rate_at, parameter_groups

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


def open_clips_cosine(step, steps, warmup, base):
    """open_clip 3.3's schedule, step by step, written out."""
    if step < warmup:
        return base * (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) * base


@pytest.mark.parametrize(("steps", "warmup"), [(50, 7), (10, 0), (1000, 999)])
def test_the_schedule_in_samples_is_open_clips_in_steps(steps, warmup):
    batch = 32
    config = OptimizerConfig(learning_rate=5e-4, warmup_samples=warmup * batch)
    for step in range(steps):
        ours = learning_rate_at(step * batch, batch, steps * batch, config)
        assert ours == pytest.approx(open_clips_cosine(step, steps, warmup, 5e-4), rel=1e-12)


def rates(config, total, batch=10):
    return {seen: learning_rate_at(seen, batch, total, config) for seen in range(0, total, batch)}


def test_wsd_warms_up_stays_and_cools_down_as_one_minus_a_square_root():
    config = OptimizerConfig(learning_rate=2.0, schedule="wsd", warmup_samples=100, cooldown_samples=200)
    found = rates(config, 1000)
    assert [found[seen] for seen in (0, 40, 90)] == pytest.approx([0.2, 1.0, 2.0])
    assert {found[seen] for seen in range(90, 801, 10)} == {2.0}, "the first step of the cool-down is not cooler"
    for seen in range(800, 1000, 10):
        assert found[seen] == pytest.approx(2.0 * (1 - ((seen - 800) / 200) ** 0.5))
    assert 0 < found[990] < 0.06


def test_rsqrt_falls_with_the_square_root_of_the_samples_and_cools_down_too():
    config = OptimizerConfig(learning_rate=2.0, schedule="rsqrt", warmup_samples=100, cooldown_samples=200)
    found = rates(config, 1000)
    assert found[90] == found[100] == 2.0
    for seen in range(100, 801, 10):
        assert found[seen] == pytest.approx(2.0 * (100 / seen) ** 0.5)
    for seen in range(800, 1000, 10):
        assert found[seen] == pytest.approx(2.0 * (100 / seen) ** 0.5 * (1 - ((seen - 800) / 200) ** 0.5))


@pytest.mark.parametrize("schedule", ["wsd", "rsqrt"])
def test_before_the_cool_down_the_length_of_the_run_does_not_matter(schedule):
    config = OptimizerConfig(schedule=schedule, warmup_samples=100)
    trunk, branch = rates(config, 5000), rates(replace(config, cooldown_samples=300), 1300)
    assert all(branch[seen] == trunk[seen] for seen in range(0, 1001, 10)), "to the last bit"


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
