"""A run uses initial weights in the model that they were trained in, or reports what differs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch

from diptych.config.load import ConfigError, load_config
from diptych.config.schema import ImageTowerConfig, ModelConfig
from diptych.data.tokenizer import Tokenizer
from diptych.drill.small_run import write_shards
from diptych.encoder import load
from diptych.errors import UserError
from diptych.model.open_clip_layout import to_open_clip
from diptych.model_folder import save_model_folder
from diptych.training.checks import check_run
from diptych.training.initial_weights import start_from
from diptych.verbs.train import _defaults_from_weights
from diptych.world import World
from tests.test_encoder import TOKENIZER, dual_encoder, model_config, save_checkpoint
from tests.warm import Warm

OTHER_TOKENS = Tokenizer([("a", "t</w>"), ("b", "at</w>")])
MODEL = {
    "embed_dim": 16,
    "image": {
        "name": "vit_base_patch32_clip_quickgelu_224",
        "image_size": 32,
        "overrides": {"patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2},
    },
    "text": {"context_length": 10, "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "shards"
    write_shards(folder)
    return folder


@pytest.fixture
def folder(tmp_path):
    save_model_folder(tmp_path / "model", dual_encoder(model_config()).state_dict(), model_config(), TOKENIZER)
    return tmp_path / "model"


def resolved(tmp_path, shards, *overrides, model=None):
    """The model's config and its vocabulary, as a run would use them."""
    file = tmp_path / "run.yaml"
    values = {"run_dir": str(tmp_path / "run"), "data": {"train": str(shards)}}
    values |= {"training": {"total_samples": 64, "global_batch_size": 8}} | ({"model": model} if model else {})
    file.write_text(json.dumps(values))
    defaults = _defaults_from_weights([file], overrides)
    loaded = load_config([file], overrides, (lambda config: check_run(config, World()),), defaults=defaults)
    return loaded.config.model, loaded.config.tokenizer.vocabulary


def test_without_a_model_the_folders_towers_pictures_and_vocabulary_are_taken(tmp_path, shards):
    image = ImageTowerConfig(**MODEL["image"], mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    trained = ModelConfig(embed_dim=16, image=image, text=model_config().text)
    save_model_folder(tmp_path / "m", dual_encoder(trained).state_dict(), trained, TOKENIZER)
    config, vocabulary = resolved(tmp_path, shards, f"model.initial_weights={tmp_path / 'm'}")
    assert config == ModelConfig(embed_dim=16, image=image, text=trained.text, initial_weights=str(tmp_path / "m"))
    assert Tokenizer.load(vocabulary).fingerprint == TOKENIZER.fingerprint
    larger = (f"model.initial_weights={tmp_path / 'm'}", "model.image.image_size=48")
    assert resolved(tmp_path, shards, *larger)[0].image.mean == (0.5, 0.5, 0.5)


def test_a_run_that_saved_takes_model_and_vocabulary_from_itself(tmp_path, shards, folder):
    save_checkpoint(tmp_path / "run", 1)
    shutil.rmtree(folder)
    config, vocabulary = resolved(tmp_path, shards, f"model.initial_weights={folder}")
    assert config.text == model_config().text and str(tmp_path / "run") in vocabulary


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"text.activation": "gelu"}, "model.text.activation is quick_gelu there, gelu here"),
        ({"text.context_length": 12}, "model.text.context_length is 10 there, 12 here"),
        ({"text.heads": 4}, "model.text.heads is 2 there, 4 here"),
        ({"image.mean": [0.5, 0.5, 0.5]}, "0.40821073] there, [0.5, 0.5, 0.5] here"),
        ({"image.name": "vit_base_patch32_clip_224"}, "model.image.name is vit_base_patch32_clip_quickgelu_224 there"),
        ({"image.overrides.num_heads": 4}, "'num_heads': 2} there"),
        ({"image.overrides.global_pool": "avg"}, "'global_pool': 'avg'} here"),
    ],
)  # fmt: skip
def test_every_difference_is_named(tmp_path, shards, folder, changed, line):
    overrides = [f"model.{key}={json.dumps(value)}" for key, value in changed.items()]
    with pytest.raises(ConfigError) as refusal:
        resolved(tmp_path, shards, f"model.initial_weights={folder}", *overrides, model=MODEL)
    assert line in str(refusal.value) and "to use what is there" in str(refusal.value)


def test_other_tokens_of_the_same_number_are_refused(tmp_path, shards, folder):
    OTHER_TOKENS.save(tmp_path / "v.json")
    words = (f"model.initial_weights={folder}", f"tokenizer.vocabulary={tmp_path / 'v.json'}")
    for model in (MODEL, None):
        with pytest.raises(ConfigError, match=r"tokenizer.vocabulary .*v.json has other tokens than"):
            resolved(tmp_path, shards, *words, model=model)


def test_an_equal_model_may_have_another_name_size_and_dropout(tmp_path, shards, folder):
    image = {
        "name": "vit_base_patch16_clip_quickgelu_224",
        "image_size": 48,
        "overrides": MODEL["image"]["overrides"] | {"patch_drop_rate": 0.5},
    }
    config, _ = resolved(tmp_path, shards, f"model.initial_weights={folder}", model=MODEL | {"image": image})
    model = dual_encoder(config, seed=3)
    start_from(model, config)
    state, source = model.state_dict(), dual_encoder(model_config()).state_dict()
    assert state["image.trunk.pos_embed"].shape == (1, 37, 32)
    assert all(torch.equal(state[name], source[name]) for name in state if name != "image.trunk.pos_embed")


@pytest.mark.parametrize("layout", ["ours", "open_clip", "openai"])
def test_a_lone_safetensors_file_is_read_with_the_model_that_the_config_gives(tmp_path, shards, layout):
    state = dual_encoder(model_config()).state_dict()
    tensors = dict(state) if layout == "ours" else to_open_clip(state, model_config())
    if layout == "openai":
        tensors |= {name: torch.tensor(7) for name in ("input_resolution", "context_length", "vocab_size")}
    file = tmp_path / "some.safetensors"
    safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
    TOKENIZER.save(tmp_path / "v.json")
    words = (f"model.initial_weights={file}", f"tokenizer.vocabulary={tmp_path / 'v.json'}")
    config, _ = resolved(tmp_path, shards, *words, model=MODEL)
    model = dual_encoder(config, seed=3)
    start_from(model, config)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_a_file_without_a_model_in_the_config_is_refused(tmp_path, shards):
    safetensors.torch.save_file(dual_encoder(model_config()).state_dict(), tmp_path / "some.safetensors")
    with pytest.raises(ConfigError, match="does not describe its towers"):
        resolved(tmp_path, shards, f"model.initial_weights={tmp_path / 'some.safetensors'}")


@pytest.mark.parametrize("kind", ["checkpoint", "run", "weights"])
def test_a_checkpoint_a_run_and_the_weights_in_a_folder_mean_the_folder(tmp_path, shards, folder, kind):
    checkpoint = save_checkpoint(tmp_path / "other", 1)
    named = {"checkpoint": checkpoint, "run": tmp_path / "other", "weights": folder / "model.safetensors"}[kind]
    config, _ = resolved(tmp_path, shards, f"model.initial_weights={named}")
    start_from(dual_encoder(config), config)
    assert config.text == model_config().text


def test_a_pickled_file_is_never_read_and_its_conversion_works(tmp_path, shards):
    file = tmp_path / "epoch_3.pt"
    torch.save({"epoch": 3, "state_dict": {"module.logit_scale": torch.tensor(2.0)}}, file)
    with pytest.raises(ConfigError, match="may hold code, which is never run; convert it with") as refusal:
        resolved(tmp_path, shards, f"model.initial_weights={file}", model=MODEL)
    code = str(refusal.value).split("`")[1].removeprefix('python -c "').removesuffix('"')
    assert Warm("tests.warm:interpret", code).wait() == 0
    assert safetensors.torch.load_file(tmp_path / "epoch_3.safetensors") == {"logit_scale": torch.tensor(2.0)}


def test_weights_of_another_shape_are_refused(tmp_path):
    config = model_config(initial_weights=str(Path(tmp_path) / "w.safetensors"))
    state = dual_encoder(model_config()).state_dict()
    state["text.token_embedding.weight"] = state["text.token_embedding.weight"][1:].clone()
    safetensors.torch.save_file(state, config.initial_weights)
    with pytest.raises(UserError, match=r"initial_weights .* text\.token_embedding\.weight has shape"):
        start_from(dual_encoder(config), config)


@pytest.mark.parametrize("lone", [True, False], ids=["file", "folder"])
@pytest.mark.parametrize("harm", ["cut", "another shape"])
def test_weights_that_cannot_be_used_are_refused_before_anything_starts(tmp_path, shards, folder, harm, lone):
    file = tmp_path / "lone.safetensors" if lone else folder / "model.safetensors"
    state = dual_encoder(model_config()).state_dict()
    if harm == "another shape":
        state["text.token_embedding.weight"] = state["text.token_embedding.weight"][1:].clone()
    file.unlink(missing_ok=True)
    safetensors.torch.save_file(state, file)
    if harm == "cut":
        file.write_bytes(file.read_bytes()[:-1000])
    TOKENIZER.save(tmp_path / "v.json")
    words = (f"model.initial_weights={file if lone else folder}", f"tokenizer.vocabulary={tmp_path / 'v.json'}")
    with pytest.raises(ConfigError, match=r"model\.initial_weights.*(cannot be read|has shape)"):
        resolved(tmp_path, shards, *words, model=MODEL)


TEXT = {"context_length": 12, "width": 48, "heads": 3, "layers": 2, "activation": "gelu"}
"""A text tower that no image tower of these tests was trained with."""


def trained_image(tmp_path, layout):
    """The words that name an image tower in this layout, its tensors by our names, and the config of its section."""
    source = dual_encoder(model_config()).state_dict()
    state = {name: tensor.contiguous() for name, tensor in source.items() if name.startswith("image.")}
    if layout == "folder":
        save_model_folder(tmp_path / "m", source, model_config(), TOKENIZER)
        return tmp_path / "m", state
    file = tmp_path / "lone.safetensors"
    if layout == "open_clip":
        tensors = {name: tensor.contiguous() for name, tensor in to_open_clip(source, model_config()).items()}
    else:
        tensors = {name.removeprefix("image.trunk."): tensor for name, tensor in state.items()}
        del tensors["image.proj"], state["image.proj"]
        tensors |= {"head.weight": torch.zeros(1000, 32), "head.bias": torch.zeros(1000)}
    if layout == "hub":
        file = tmp_path / "hub" / "model.safetensors"
        file.parent.mkdir()
        pixels = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
        described = {"architecture": "vit_base_patch32_clip_quickgelu_224", "pretrained_cfg": pixels}
        (file.parent / "config.json").write_text(json.dumps(described))
    safetensors.torch.save_file(tensors, file)
    return file.parent if layout == "hub" else file, state


@pytest.mark.parametrize("layout", ["folder", "open_clip", "timm", "hub"])
def test_an_image_tower_is_taken_alone_with_a_text_tower_of_any_size(tmp_path, shards, layout):
    place, state = trained_image(tmp_path, layout)
    TOKENIZER.save(tmp_path / "v.json")
    words = [f"model.image.initial_weights={place}", f"tokenizer.vocabulary={tmp_path / 'v.json'}"]
    model = {"text": TEXT} if layout == "folder" else {**MODEL, "text": TEXT}
    if layout == "hub":
        with pytest.raises(ConfigError, match=r"model.image.mean is \[0.5, 0.5, 0.5\] there, \[0.48145466, "):
            resolved(tmp_path, shards, *words, model=model)
        words += ["model.image.mean=[0.5,0.5,0.5]", "model.image.std=[0.5,0.5,0.5]"]
    config, _ = resolved(tmp_path, shards, *words, model=model)
    assert config.image.overrides == model_config().image.overrides and config.text.width == 48
    fresh, started = dual_encoder(config, seed=3).state_dict(), dual_encoder(config, seed=3)
    start_from(started, config)
    for name, tensor in started.state_dict().items():
        assert torch.equal(tensor, state.get(name, fresh[name])), name


def test_a_projection_that_starts_at_random_is_not_frozen_by_mistake(tmp_path, shards):
    place, _ = trained_image(tmp_path, "timm")
    TOKENIZER.save(tmp_path / "v.json")
    words = [f"model.image.initial_weights={place}", f"tokenizer.vocabulary={tmp_path / 'v.json'}"]
    with pytest.raises(
        ConfigError, match=r"image.proj starts at random, .*; freeze image.trunk.\* instead of image.\*"
    ):
        resolved(tmp_path, shards, *words, 'model.freeze=["image.*"]', model=MODEL)
    resolved(tmp_path, shards, *words, 'model.freeze=["image.trunk.*"]', model=MODEL)


@pytest.mark.parametrize(
    ("word", "complaint"),
    [
        ("model.initial_weights=there", "both name weights of the image tower; leave one of them out"),
        ("model.image.overrides.num_heads=4", "'num_heads': 2} there"),
        ("model.image.overrides.depth=2", "'depth': 1, .* there"),
    ],
)
def test_an_image_tower_that_the_weights_do_not_fit_is_refused(tmp_path, shards, folder, word, complaint):
    words = (f"model.image.initial_weights={folder}", f"tokenizer.vocabulary={folder / 'vocabulary.json'}", word)
    with pytest.raises(ConfigError, match=complaint):
        resolved(tmp_path, shards, *words, model=MODEL)


def test_a_locked_image_tower_is_bit_equal_after_training_and_the_text_tower_is_not(tmp_path, shards, warm):
    place, state = trained_image(tmp_path, "folder")
    run = tmp_path / "run"
    command = warm.start(
        *("train", f"run_dir={run}", f"data.train={shards}", f"tokenizer.vocabulary={place / 'vocabulary.json'}"),
        *("training.total_samples=64", "training.global_batch_size=32", "tracking.wandb=off"),
        *(f"model.image.initial_weights={place}", f"model.text={json.dumps(TEXT)}", 'model.freeze=["image.*"]'),
    )
    assert command.wait() == 0, command.said
    first, last = (load(run / "checkpoints" / f"step_{step:08d}").model.state_dict() for step in (1, 2))
    for name in last:
        assert torch.equal(first[name], last[name]) == name.startswith("image."), name
        assert name not in state or torch.equal(last[name], state[name]), name
