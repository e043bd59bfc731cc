"""Start the image tower from trained weights, and the text tower from random ones (LiT, arXiv 2111.07991).

They come from a model with any text tower, in our layout or open_clip's, or from a file of the timm model itself.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from diptych.config.load import LoadedConfig
from diptych.config.schema import ImageTowerConfig, ModelConfig
from diptych.config.values import config_to_dict
from diptych.documents import parse_json
from diptych.errors import UserError
from diptych.model.dual_encoder import TrainedModel, check_tensors, shapes_of
from diptych.model.open_clip_layout import image_from_open_clip
from diptych.model_folder import CONFIG_FILE, read_description, read_model_folder
from diptych.tensor_files import read_tensors
from diptych.training.model_differences import differences

KEY = "model.image.initial_weights"
FREE_KEYS = (KEY, "model.image.image_size")
"""Keys of the image tower that a configuration may set while the rest comes from the folder."""
PROJECTION = "image.proj"


def image_defaults(loaded: LoadedConfig, folder: Path) -> dict[str, Any]:
    """The settings of the image tower of a model folder, unless the configuration has its own."""
    if [key for key in loaded.sources if key.startswith("model.image.") and key not in FREE_KEYS]:
        return {}
    described, _ = read_description(folder)
    values: dict[str, Any] = config_to_dict(dataclasses.replace(loaded.config, model=described))["model"]
    del values["image"]["initial_weights"]
    return {"model": {"image": values["image"], "embed_dim": values["embed_dim"]}}


def check_image_weights(place: Path, config: ModelConfig, model: TrainedModel) -> None:
    """Check that the weights at a model folder or file fit the image tower of a model on the meta device.

    Raises:
        UserError: they cannot be read, or differ from the configuration (one line for each difference).
    """
    if place.is_dir():
        described, _ = read_description(place)
        differing = list(differences(dataclasses.replace(config, image=described.image), config))
    else:
        differing = list(_other_pixels(place, config.image))
    if differing:
        way_out = "to use what is there, leave out all of `model.image:` except initial_weights and image_size"
        lines = [f"{KEY} {place}: {line}" for line in differing]
        raise UserError("\n".join([*lines, *([way_out] if place.is_dir() else ())]))
    state = image_state(place, model)
    is_random = PROJECTION in shapes_of(model) and PROJECTION not in state
    if is_random and any(fnmatchcase(PROJECTION, pattern) for pattern in config.freeze):
        raise UserError(
            f"{KEY} {place} has no projection to model.embed_dim {config.embed_dim}, so {PROJECTION} starts at random, "
            f"and model.freeze {list(config.freeze)} would leave it so; freeze image.trunk.* instead of image.*"
        )


def image_state(place: Path, model: TrainedModel) -> dict[str, Tensor]:
    """The tensors of the image tower by our names, resampled to the model's picture size.

    The projection is left out if the weights have none, or one to another embed_dim.

    Raises:
        UserError: the weights cannot be read, or a tensor is missing or has another shape.
    """
    expected = {name: shape for name, shape in shapes_of(model).items() if name.startswith("image.")}
    state = read_model_folder(place)[0] if place.is_dir() else read_tensors(place)
    try:
        state = _by_our_names(state, model)
        if PROJECTION not in state or tuple(state[PROJECTION].shape) != expected.get(PROJECTION):
            state.pop(PROJECTION, None)
            expected.pop(PROJECTION, None)
        state = resize_image_positions(state, model)
        check_tensors(state, expected)
    except UserError as error:
        raise UserError(f"{KEY} {place} does not fit the image tower: {error}") from error
    return state


def resize_image_positions(state: Mapping[str, Tensor], model: TrainedModel) -> dict[str, Tensor]:
    """Resample the position grid of a vision transformer to the model's picture size; return a new state.

    The class token's position stays; the grid is resampled bicubically with antialiasing, as open_clip does.
    This is how the paper's L/14@336 continues L/14 (section 2.5).
    """
    name = "image.trunk.pos_embed"
    state, wanted = dict(state), model.state_dict().get(name)
    if name not in state or wanted is None or state[name].shape == wanted.shape:
        return state
    old, new = math.isqrt(state[name].shape[1]), math.isqrt(wanted.shape[1])
    prefix = state[name].shape[1] - old**2
    if prefix not in (0, 1) or wanted.shape[1] - new**2 != prefix:
        return state  # not a square grid; the check of shapes will report it
    grid = state[name][:, prefix:].float().reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", antialias=True, align_corners=False)
    grid = grid.permute(0, 2, 3, 1).reshape(1, new * new, -1).to(state[name].dtype)
    state[name] = torch.cat([state[name][:, :prefix], grid], dim=1)
    return state


def timm_description(folder: Path) -> dict[str, Any] | None:
    """What a folder with a timm model of Hugging Face's hub says about its pictures; None if it is another folder."""
    try:
        document = parse_json((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    described = document.get("pretrained_cfg") if isinstance(document, dict) and "architecture" in document else None
    return described if isinstance(described, dict) else None


def _other_pixels(file: Path, config: ImageTowerConfig) -> list[str]:
    """A line for each pixel setting that differs from what a timm model was trained with; none if that is unknown."""
    described = timm_description(file.parent) or {}
    return [
        f"model.image.{key} is {described[key]} there, {list(getattr(config, key))} here"
        for key in ("mean", "std")
        if key in described and described[key] != list(getattr(config, key))
    ]


def _by_our_names(state: Mapping[str, Tensor], model: TrainedModel) -> dict[str, Tensor]:
    """The tensors of the image tower in a state of our layout, open_clip's or timm's."""
    if any(name.startswith("visual.") for name in state):
        return image_from_open_clip(state)
    if ours := {name: tensor for name, tensor in state.items() if name.startswith("image.")}:
        return ours
    described: Any = getattr(model.image.trunk, "pretrained_cfg", None) or {}
    classifiers = described.get("classifier") or ()
    heads = (classifiers,) if isinstance(classifiers, str) else tuple(classifiers)
    return {
        f"image.trunk.{name}": tensor
        for name, tensor in state.items()
        if not name.startswith(tuple(f"{head}." for head in heads))
    }
