"""Create the trunk of an image tower, a timm model, from settings that anyone may have written."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import timm
from timm.models.byobnet import ByoBlockCfg
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from diptych.config.schema import ImageTowerConfig
from diptych.config.stages import PATCH_DROPOUT
from diptych.errors import UserError

OURS = {
    "img_size": "set model.image.image_size",
    "num_classes": "set model.embed_dim",
    "in_chans": "pictures have three channels",
}
"""Keyword of timm that is set by other means → what to do instead."""

SIZE_KEY = "model.image.image_size"

REFUSED = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir")
"""Keywords of timm that download or unpickle weights; they are refused, since a config may come from anyone."""

BUILD_ERRORS = (
    TypeError,
    ValueError,
    LookupError,
    ArithmeticError,
    AttributeError,
    AssertionError,
    RuntimeError,
)
"""Errors that timm's constructors raise for values that do not make a model."""


def create_trunk(config: ImageTowerConfig, **ours: Any) -> nn.Module:
    """Create the timm model that the config describes, with random weights.

    ours: keywords in addition to the config's overrides, or in their place.

    Raises:
        ValueError: there is no such model, or it cannot be built with the overrides.
    """
    if not timm.is_model(config.name):
        nearest = _nearest(config.name)
        raise UserError(f"model.image.name {config.name!r} is not a timm model; the nearest is {nearest!r}")
    _check_overrides(config)
    keywords = {"img_size": config.image_size, **config.overrides, **ours}
    if "blocks" in keywords:
        keywords["blocks"] = _byobnet_blocks(keywords["blocks"], config.name)
    of_sizes = {"img_size", "dynamic_img_size"} - config.overrides.keys()
    """Keywords that convolutional families lack, because they accept any size."""
    while True:
        try:
            trunk = timm.create_model(config.name, **keywords)
        except BUILD_ERRORS as error:
            unknown = _unexpected_keyword(error)
            if unknown == PATCH_DROPOUT and unknown not in config.overrides:
                raise UserError(
                    f"training.stages: {config.name} has no patch dropout; leave out patch_dropout"
                ) from error
            if unknown not in of_sizes or unknown not in keywords:
                raise _override_error(config, error) from error
            del keywords[unknown]
            continue
        if "img_size" in keywords:
            check_patches(config, trunk)
        return trunk


def check_patches(config: ImageTowerConfig, trunk: nn.Module, key: str = SIZE_KEY) -> None:
    """Refuse a picture size that is not a multiple of the patch size: timm would ignore the right and lower edges."""
    embed = getattr(trunk, "patch_embed", None)
    sides = getattr(embed, "patch_size", 1)
    patch = max(sides) if isinstance(sides, (tuple, list)) else sides
    size = config.image_size
    if size % patch and not getattr(embed, "dynamic_img_pad", False):
        raise UserError(
            f"{key} {size} is not a multiple of the patch size {patch} of {config.name}, so "
            f"{size % patch} pixels at two edges would be ignored; set {size - size % patch or patch} or "
            f"{size - size % patch + patch}"
        )


def _check_overrides(config: ImageTowerConfig) -> None:
    for key in config.overrides:
        if key in OURS:
            raise UserError(f"model.image.overrides.{key} cannot be set here: {OURS[key]}")
        if key in REFUSED:
            raise UserError(
                f"model.image.overrides.{key} is refused: towers start from random weights; "
                f"to start from others, name a model folder in model.initial_weights"
            )


def _byobnet_blocks(stages: Any, name: str) -> Any:
    """Convert mappings from YAML to timm's stage objects: `[{type: bottle, d: 3, c: 256, s: 1, br: 0.25}, …]`."""
    if isinstance(stages, Mapping):
        try:
            return ByoBlockCfg(**stages)
        except TypeError as error:
            raise UserError(f"model.image.overrides.blocks of {name}: {error}") from error
    if isinstance(stages, (list, tuple)):
        return tuple(_byobnet_blocks(stage, name) for stage in stages)
    return stages


def _unexpected_keyword(error: Exception) -> str | None:
    found = re.search(r"unexpected keyword argument(?:\(s\): \[| )'(\w+)'", str(error))
    return found.group(1) if found else None


def _override_error(config: ImageTowerConfig, error: Exception) -> ValueError:
    keyword = _unexpected_keyword(error)
    if keyword is not None:
        return UserError(f"model.image.overrides.{keyword}: {config.name} has no such keyword")
    reason = str(error) or type(error).__name__
    return UserError(
        f"model.image {config.name} at {config.image_size} pixels cannot be built with "
        f"overrides {dict(config.overrides)}: {reason}"
    )


_SIZES = {"s": "small", "m": "medium", "b": "base", "l": "large", "h": "huge", "g": "giant", "bigg": "gigantic"}
"""Size in OpenAI's and open_clip's names → timm's word for it."""


def _nearest(name: str) -> str:
    """The timm model that a name probably means; names such as ViT-B/32, ViT-B-32 or RN50 mean that model's tower."""
    towers = timm.list_models()
    if found := re.match(r"vit-(s|m|b|l|h|g|bigg)[-/](\d+)(?:[-@](\d{3}))?", name, re.IGNORECASE):
        size, patch, image_size = found.groups()
        quick = "quickgelu_" if "/" in name or "quickgelu" in name else ""  # names with / are OpenAI's, with QuickGELU
        name = f"vit_{_SIZES[size.lower()]}_patch{patch}_clip_{quick}{image_size or 224}"
    elif found := re.match(r"rn(\d+(?:x\d+)?)", name, re.IGNORECASE):
        name = f"resnet{found[1]}_clip"
    if "_clip" in name:
        towers = [tower for tower in towers if "_clip" in tower]
    return difflib.get_close_matches(name, towers, n=1, cutoff=0)[0]


def blocks_of(trunk: nn.Module) -> list[nn.Module]:
    """The innermost blocks of a tower, found by timm's usual names for lists of blocks; empty if it has other names."""
    pattern = re.compile(r"(^|\.)(blocks|stages|layers?\d*)\.\d+$")
    named = {name: module for name, module in trunk.named_modules() if pattern.search(name)}
    return [each for name, each in named.items() if not any(other.startswith(f"{name}.") for other in named)]


@dataclass(frozen=True)
class ClipTransformerShape:
    width: int
    depth: int
    heads: int
    mlp_width: int
    patch_size: int
    activation: str


def clip_transformer_shape(trunk: nn.Module) -> ClipTransformerShape | None:
    """The sizes of a trunk that computes the same as CLIP's vision transformer; None if it does not.

    Features that have parameters of their own (registers, layer scale, ...) are not checked here.
    """
    if not isinstance(trunk, VisionTransformer) or not len(trunk.blocks):
        return None
    block: Any = trunk.blocks[0]
    activation = {"GELU": "gelu", "QuickGELU": "quick_gelu"}.get(type(block.mlp.act).__name__)
    patch_height, patch_width = trunk.patch_embed.patch_size
    computes_clip = (
        trunk.global_pool == "token"
        and patch_height == patch_width
        and isinstance(trunk.norm_pre, nn.LayerNorm)
        and all(module.eps == 1e-5 for module in trunk.modules() if isinstance(module, nn.LayerNorm))
    )
    if activation is None or not computes_clip:
        return None
    return ClipTransformerShape(
        width=trunk.embed_dim,
        depth=len(trunk.blocks),
        heads=block.attn.num_heads,
        mlp_width=block.mlp.fc1.out_features,
        patch_size=patch_height,
        activation=activation,
    )
