"""The image tower: any timm model, followed by a linear projection into the space that both towers share."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import timm
import torch
from timm.layers import AttentionPool2d
from timm.layers import PatchDropout as TimmPatchDropout
from timm.models.byobnet import ByoBlockCfg, ByobNet
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from diptych.config.schema import ImageTowerConfig
from diptych.config.stages import PATCH_DROPOUT, Stage
from diptych.errors import UserError
from diptych.model.patch_dropout import PatchDropout
from diptych.model.precision import full_precision

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


class ImageTower(nn.Module):
    """Embeds images u8[batch 3 H W] as f[batch embed_dim], not normalised.

    CLIP-ResNets have no `proj`, since their attention pooling ends with the projection (paper, section 2.4).

    stages: those in which it is trained. If pictures have another size in one of them, position embeddings are
    resampled in the forward.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: ImageTowerConfig, embed_dim: int | None, stages: Sequence[Stage] = ()):
        super().__init__()
        self.image_size = config.image_size
        trunk: Any = create_trunk(config, **_keywords_of_stages(config, stages), num_classes=0)
        self.proj = None
        if isinstance(getattr(trunk, "head", None), AttentionPool2d):
            if embed_dim is not None:
                trunk.reset_classifier(embed_dim)
            self.width = int(trunk.head.embed_dim)
        else:
            self.width = getattr(trunk, "head_hidden_size", None) or trunk.num_features
        if embed_dim is not None and not isinstance(getattr(trunk, "head", None), AttentionPool2d):
            self.proj = nn.Parameter(torch.randn(self.width, embed_dim) * self.width**-0.5)
        initialise_as_openai(trunk)
        _key_patch_dropout(trunk)
        self.trunk = trunk
        self._has_grouped_convolutions = any(getattr(each, "groups", 1) != 1 for each in trunk.modules())

        # In units of pixel values (0 to 255), so that normalising is one subtraction and one division.
        mean, std = (255 * torch.tensor(values).view(1, 3, 1, 1) for values in (config.mean, config.std))
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    def forward(self, images: Tensor, row_keys: Tensor | None = None) -> Tensor:
        """Embed images.

        row_keys: i64[batch], from which patch dropout computes each picture's mask; only needed in training with it.
        """
        return self.project(self.features(images, row_keys))

    def features(self, images: Tensor, row_keys: Tensor | None = None) -> Tensor:
        """What the trunk gives, f[batch width], before the projection; for CLIP-ResNets it includes the projection."""
        features: Tensor = self.trunk(self._pixels(images, row_keys))
        return features

    def before_and_after_projection(self, images: Tensor, row_keys: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The features before the projection, f[batch width], also for CLIP-ResNets; and the embeddings."""
        pixels = self._pixels(images, row_keys)
        trunk: Any = self.trunk
        if self.proj is not None:
            features = trunk(pixels)
            return features, self.project(features)
        features = trunk.head(trunk.forward_features(pixels), pre_logits=True)
        return features, trunk.head.proj(features)

    def project(self, features: Tensor) -> Tensor:
        """Project features f[batch width] of the trunk as f[batch embed_dim]."""
        if self.proj is None:
            return features
        with full_precision(features.device):
            return features.float() @ self.proj

    def _pixels(self, images: Tensor, row_keys: Tensor | None) -> Tensor:
        """Normalise pixels for the trunk."""
        self.key_rows(row_keys)
        if images.dtype != torch.uint8:
            raise UserError(f"images are {images.dtype}, expected torch.uint8: the model normalises pixels itself")
        pixels = images.float().sub_(self.mean).div_(self.std)
        return pixels.contiguous(memory_format=self._layout(pixels.device))

    def key_rows(self, row_keys: Tensor | None) -> None:
        patch_dropout = getattr(self.trunk, "patch_drop", None)
        if isinstance(patch_dropout, PatchDropout):
            patch_dropout.row_keys = row_keys

    def leave_out_patches(self, share: float) -> None:
        """Set the share of each picture's patches that is left out in training, of a tower with patch dropout."""
        patch_dropout = getattr(self.trunk, "patch_drop", None)
        if isinstance(patch_dropout, PatchDropout):
            patch_dropout.rate = share

    def _layout(self, device: torch.device) -> torch.memory_format:
        """The memory layout of the pixels: channels_last, with which convolutions are up to a fifth faster.

        The exception is grouped convolutions on a CPU: with channels_last the backward of some of them writes outside
        its memory and kills the process (FastViT, with torch's oneDNN).
        """
        is_unsafe = device.type == "cpu" and self._has_grouped_convolutions
        return torch.contiguous_format if is_unsafe else torch.channels_last


def _keywords_of_stages(config: ImageTowerConfig, stages: Sequence[Stage]) -> dict[str, Any]:
    """What timm must know when it creates a tower that is trained in these stages; no parameter depends on it."""
    keywords: dict[str, Any] = {}
    if any(stage.model.image.image_size != config.image_size for stage in stages):
        keywords["dynamic_img_size"] = True
    if most := max((stage.patch_dropout for stage in stages), default=0.0):
        keywords[PATCH_DROPOUT] = most
    return keywords


def _key_patch_dropout(trunk: Any) -> None:
    """Replace timm's patch dropout, which draws masks for all rows together, by ours, which uses each row's key."""
    theirs = getattr(trunk, "patch_drop", None)
    with_indices = getattr(timm.layers, "PatchDropoutWithIndices", TimmPatchDropout)  # one class before timm 1.0.21
    if isinstance(theirs, (TimmPatchDropout, with_indices)):
        gives_indices = getattr(theirs, "return_indices", not isinstance(theirs, TimmPatchDropout))
        trunk.patch_drop = PatchDropout(theirs.prob, theirs.num_prefix_tokens, gives_indices=gives_indices)


def has_position_embeddings(tower: ImageTower) -> bool:
    return any(name.endswith("pos_embed") for name, _ in tower.named_parameters())


def blocks_of(trunk: nn.Module) -> list[nn.Module]:
    """The innermost blocks of a tower, found by timm's usual names for lists of blocks; empty if it has other names."""
    pattern = re.compile(r"(^|\.)(blocks|stages|layers?\d*)\.\d+$")
    named = {name: module for name, module in trunk.named_modules() if pattern.search(name)}
    return [each for name, each in named.items() if not any(other.startswith(f"{name}.") for other in named)]


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


def create_trunk(config: ImageTowerConfig, **ours: Any) -> nn.Module:
    """Create the timm model that the config describes, with random weights.

    ours: keywords in addition to the config's overrides, or in their place.

    Raises:
        ValueError: there is no such model, or it cannot be built with the overrides.
    """
    if not timm.is_model(config.name):
        nearest = _nearest(config.name)
        raise UserError(f"model.image.name {config.name!r} is not a timm model; the nearest is {nearest!r}")
    check_overrides(config)
    keywords = {"img_size": config.image_size, **config.overrides, **ours}
    if "blocks" in keywords:
        keywords["blocks"] = byobnet_blocks(keywords["blocks"], config.name)
    of_sizes = {"img_size", "dynamic_img_size"} - config.overrides.keys()
    """Keywords that convolutional families lack, because they accept any size."""
    while True:
        try:
            trunk = timm.create_model(config.name, **keywords)
        except BUILD_ERRORS as error:
            unknown = unexpected_keyword(error)
            if unknown == PATCH_DROPOUT and unknown not in config.overrides:
                raise UserError(
                    f"training.stages: {config.name} has no patch dropout; leave out patch_dropout"
                ) from error
            if unknown not in of_sizes or unknown not in keywords:
                raise override_error(config, error) from error
            del keywords[unknown]
            continue
        if "img_size" in keywords:
            check_patches(config, trunk)
        return trunk


def check_picture_size(config: ImageTowerConfig, tower: ImageTower, key: str = SIZE_KEY) -> None:
    """Pass two pictures without data through a tower on the meta device, to check that it accepts the config's size.

    key: the setting that the size is from.

    Raises:
        UserError: the tower cannot take pictures of this size.
    """
    size = config.image_size
    if size != tower.image_size:  # otherwise it was checked when the tower was created
        check_patches(config, tower.trunk, key)
    with torch.device("meta"):
        tower.key_rows(torch.arange(2))
        try:
            tower.trunk(torch.zeros(2, 3, size, size))
        except BUILD_ERRORS as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            if "meta" in reason:  # the tower's computation depends on data, so it cannot be checked here
                return
            designed = f", {tower.image_size}" if size != tower.image_size else _size_of(tower.trunk)
            raise UserError(
                f"{key} {size}: {config.name} cannot take pictures of this size ({reason}); set the size that it was "
                f"designed for{designed}"
            ) from error


def _size_of(trunk: nn.Module) -> str:
    """`, 224`, the picture size of the tower in timm's records; empty if timm has none."""
    size = (getattr(trunk, "pretrained_cfg", None) or {}).get("input_size")
    return f", {size[-1]}" if size else ""


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


def check_overrides(config: ImageTowerConfig) -> None:
    for key in config.overrides:
        if key in OURS:
            raise UserError(f"model.image.overrides.{key} cannot be set here: {OURS[key]}")
        if key in REFUSED:
            raise UserError(
                f"model.image.overrides.{key} is refused: towers start from random weights; "
                f"to start from others, name a model folder in model.initial_weights"
            )


def byobnet_blocks(stages: Any, name: str) -> Any:
    """Convert mappings from YAML to timm's stage objects: `[{type: bottle, d: 3, c: 256, s: 1, br: 0.25}, …]`."""
    if isinstance(stages, Mapping):
        try:
            return ByoBlockCfg(**stages)
        except TypeError as error:
            raise UserError(f"model.image.overrides.blocks of {name}: {error}") from error
    if isinstance(stages, (list, tuple)):
        return tuple(byobnet_blocks(stage, name) for stage in stages)
    return stages


def unexpected_keyword(error: Exception) -> str | None:
    found = re.search(r"unexpected keyword argument(?:\(s\): \[| )'(\w+)'", str(error))
    return found.group(1) if found else None


def override_error(config: ImageTowerConfig, error: Exception) -> ValueError:
    keyword = unexpected_keyword(error)
    if keyword is not None:
        return UserError(f"model.image.overrides.{keyword}: {config.name} has no such keyword")
    reason = str(error) or type(error).__name__
    return UserError(
        f"model.image {config.name} at {config.image_size} pixels cannot be built with "
        f"overrides {dict(config.overrides)}: {reason}"
    )


@torch.no_grad()
def initialise_as_openai(trunk: nn.Module) -> None:
    """Initialise a vision transformer or a CLIP-ResNet as OpenAI's code does; others stay as timm initialised them."""
    if isinstance(trunk, VisionTransformer):
        initialise_transformer(trunk)
    elif isinstance(trunk, ByobNet) and isinstance(trunk.head, AttentionPool2d):
        initialise_clip_resnet(trunk)


def initialise_transformer(trunk: VisionTransformer) -> None:
    std = trunk.embed_dim**-0.5
    for embedding in (trunk.cls_token, trunk.reg_token, trunk.pos_embed):
        if embedding is not None:
            nn.init.normal_(embedding, std=std)
    for module in trunk.patch_embed.modules():
        if isinstance(module, nn.Conv2d):
            module.reset_parameters()
    for name, module in trunk.blocks.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        module.reset_parameters()
        # Attention starts like torch's MultiheadAttention; the two layers of the MLP like torch's Linear.
        if name.endswith("attn.qkv"):
            nn.init.xavier_uniform_(module.weight)
        if name.endswith(("attn.qkv", "attn.proj")) and module.bias is not None:
            nn.init.zeros_(module.bias)


def initialise_clip_resnet(trunk: ByobNet) -> None:
    """Initialise all but the zero gain at the end of each residual branch, which timm has already set."""
    for module in trunk.modules():
        if isinstance(module, nn.Conv2d):
            module.reset_parameters()
    pool: Any = trunk.head
    std = pool.in_features**-0.5
    nn.init.normal_(pool.pos_embed, std=std)
    for layer in (pool.q, pool.k, pool.v, *([pool.proj] if isinstance(pool.proj, nn.Linear) else [])):
        layer.reset_parameters()
        nn.init.normal_(layer.weight, std=std)


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
