"""Start a run from the weights of a model folder, of another run, or of a safetensors file.

Trained weights are only useful in the same towers, with the same token ids and the same pixel values. So a run takes
its model and vocabulary from where its weights come from. A configuration that differs is refused; only the picture
size may change. `image_weights` does the same for the image tower alone.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from torch import Tensor

from diptych.checkpoint_folder import TOKEN_HEAD, checkpoints
from diptych.config.load import LoadedConfig
from diptych.config.schema import ModelConfig, RunConfig
from diptych.config.values import config_to_dict
from diptych.data.tokenizer import load_tokenizer
from diptych.errors import UserError
from diptych.files import local_path
from diptych.model.dual_encoder import (
    DualEncoder,
    TrainedModel,
    check_tensors,
    load_weights,
    shapes_of,
    trained_without_memory,
    without_memory,
)
from diptych.model.open_clip_layout import from_open_clip
from diptych.model_folder import (
    PICKLED,
    WEIGHTS_FILE,
    conversion_of,
    is_model_folder,
    model_folder,
    read_description,
    read_model_folder,
    vocabulary_of,
)
from diptych.run_dir import RunDir
from diptych.tensor_files import read_tensors
from diptych.training import image_weights
from diptych.training.model_differences import differences

KEY = "model.initial_weights"
FREE_KEYS = (KEY, "model.image.image_size", "model.freeze")
"""Keys of the model that a configuration may set while the rest comes from the folder."""


def defaults_from_initial_weights(loaded: LoadedConfig) -> dict[str, Any]:
    """Settings for model and vocabulary from the folder that the run starts from, unless the configuration has its own.

    A run that has a checkpoint takes them from its newest one, and a branch from its trunk's, since the folder may have
    been removed.

    Raises:
        UserError, OSError: the folder does not exist or cannot be read.
    """
    config = loaded.config
    of_image = config.model.initial_weights is None
    named, key = config.model.initial_weights, KEY
    if of_image:
        named, key = config.model.image.initial_weights, image_weights.KEY
    if named is None:
        return {}
    run = RunDir(Path(config.run_dir))
    goes_on_from = str(run.path) if checkpoints(run.checkpoints) else config.initial_checkpoint
    origin = _place_of(goes_on_from or named, key)
    if origin.is_file():
        return {}
    if of_image:
        return image_weights.image_defaults(loaded, origin)
    described, _ = read_description(origin)
    values: dict[str, Any] = {}
    if not [key for key in loaded.sources if key.partition(".")[0] == "model" and key not in FREE_KEYS]:
        values["model"] = config_to_dict(dataclasses.replace(config, model=described))["model"]
        del values["model"]["initial_weights"], values["model"]["freeze"], values["model"]["image"]["initial_weights"]
    if loaded.source_of("tokenizer.vocabulary") == "default":
        values["tokenizer"] = {"vocabulary": vocabulary_of(origin)}
    return values


def check_initial_weights(config: RunConfig) -> None:
    """Check that the initial weights can be read and fit the model.

    Raises:
        UserError: they are missing or damaged, or differ from the configuration (one line for each difference).
    """
    if checkpoints(RunDir(Path(config.run_dir)).checkpoints) or config.initial_checkpoint is not None:
        return  # a branch may repeat those of its trunk, which `check_initial_checkpoint` compares
    if (of_image := config.model.image.initial_weights) is not None:
        vocab_size = load_tokenizer(config.tokenizer.vocabulary).vocab_size
        model = trained_without_memory(config.model, vocab_size, config.loss)
        image_weights.check_image_weights(_place_of(of_image, image_weights.KEY), config.model, model)
    if config.model.initial_weights is None:
        return
    place = _place_of(config.model.initial_weights)
    if place.is_file() and config.model == ModelConfig(initial_weights=config.model.initial_weights):
        raise UserError(f"model.initial_weights {place} does not describe its towers; describe them under `model:`")
    if place.is_dir():
        described, tokenizer = read_description(place)
        differing = list(differences(described, config.model))
        if load_tokenizer(config.tokenizer.vocabulary).fingerprint != tokenizer.fingerprint:
            there = vocabulary_of(place)
            differing.append(f"tokenizer.vocabulary {config.tokenizer.vocabulary} has other tokens than {there}")
        if differing:
            lines = [f"model.initial_weights {config.model.initial_weights}: {line}" for line in differing]
            free = ", ".join(key.removeprefix("model.") for key in FREE_KEYS)
            way_out = f"to use what is there, leave out `tokenizer:` and all of `model:` except {free}"
            raise UserError("\n".join([*lines, way_out]))
    vocab_size = load_tokenizer(config.tokenizer.vocabulary).vocab_size
    _weights_for(without_memory(config.model, vocab_size), config.model)


def start_from(model: TrainedModel, config: ModelConfig) -> None:
    """Fill a model, or its image tower, with the weights that the config names, if it names some.

    Position embeddings are resampled to the model's picture size.

    Raises:
        UserError: the weights are missing or have other shapes.
    """
    if (of_image := config.image.initial_weights) is not None:
        state = image_weights.image_state(_place_of(of_image, image_weights.KEY), model)
        load_weights(model, {**model.state_dict(), **state})
    if config.initial_weights is not None:
        assert isinstance(model, DualEncoder)
        load_weights(model, _weights_for(model, config))


def _weights_for(model: DualEncoder, config: ModelConfig) -> dict[str, Tensor]:
    """A complete state dict for the model; the model keeps its own logit_bias and token head.

    Raises:
        UserError: the weights cannot be read, or a tensor is missing or has another shape.
    """
    assert config.initial_weights is not None
    place = _place_of(config.initial_weights)
    state = _read_file(place, config) if place.is_file() else read_model_folder(place)[0]
    # They belong to the loss, not to the towers: another loss starts with its own, or without.
    state = {name: tensor for name, tensor in state.items() if name != "logit_bias"}
    own = {"logit_bias"} | {f"{TOKEN_HEAD}.{name}" for name in ("weight", "bias")}
    state |= {name: tensor for name, tensor in model.state_dict().items() if name in own}
    try:
        state = image_weights.resize_image_positions(state, model)
        check_tensors(state, shapes_of(model))
    except UserError as error:
        raise UserError(f"model.initial_weights {place} does not fit the model: {error}") from error
    return state


def _place_of(named: str, key: str = KEY) -> Path:
    """The path of the model folder, or of a safetensors file that is not in a model folder.

    key: the setting that names it.
    """
    path = local_path(named)
    if image_weights.timm_description(path) is not None and (path / WEIGHTS_FILE).is_file():
        path = path / WEIGHTS_FILE
    if path.suffix in PICKLED and path.is_file():
        raise UserError(f"{key} {named} may hold code, which is never run; convert it with `{conversion_of(path)}`")
    if path.suffix == ".safetensors" and path.is_file():
        is_in_model = is_model_folder(path.parent) and image_weights.timm_description(path.parent) is None
        return path.parent if is_in_model else path
    if not path.is_dir():
        raise UserError(
            f"{key} {named} is not a folder; give a model folder or a run directory, "
            f"or null to start from random weights"
        )
    try:
        return model_folder(path)
    except UserError as error:
        raise UserError(f"{key} {error}") from error


def _read_file(file: Path, config: ModelConfig) -> dict[str, Tensor]:
    """Read a safetensors file in our layout, open_clip's or OpenAI's.

    Such a file does not record the activation, the picture preprocessing or the vocabulary.
    """
    state = read_tensors(file)
    if any(name.startswith("visual.") for name in state):
        try:
            return from_open_clip(state, config)
        except UserError as error:
            raise UserError(f"model.initial_weights {file} does not fit the model: {error}") from error
    return state
