"""The image tower: any timm model, followed by a linear projection into the space that both towers share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import timm
import torch
from timm.layers import AttentionPool2d
from timm.layers import PatchDropout as TimmPatchDropout
from torch import Tensor, nn

from diptych.config.schema import ImageTowerConfig
from diptych.config.stages import PATCH_DROPOUT, Stage
from diptych.errors import UserError
from diptych.model.patch_dropout import PatchDropout
from diptych.model.precision import full_precision
from diptych.model.trunk import BUILD_ERRORS, SIZE_KEY, check_patches, create_trunk
from diptych.model.trunk_initialisation import initialise_as_openai


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
        mean, std = (255 * torch.tensor(values) for values in (config.mean, config.std))
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
        """Normalise pixels for the trunk.

        With channels_last a row of pixels is one vector: the layout is changed while they are bytes, and a whole row
        has one mean and one deviation. That takes half the time of normalising first (0.4 instead of 0.8 ms of a core
        for a picture of 224 pixels), and gives the same bits.
        """
        self.key_rows(row_keys)
        if images.dtype != torch.uint8:
            raise UserError(f"images are {images.dtype}, expected torch.uint8: the model normalises pixels itself")
        if self._layout(images.device) is torch.contiguous_format:
            return images.float().sub_(self.mean.view(3, 1, 1)).div_(self.std.view(3, 1, 1)).contiguous()
        columns = images.shape[3]
        rows = images.permute(0, 2, 3, 1).flatten(2)
        rows = rows.float().sub_(self.mean.repeat(columns)).div_(self.std.repeat(columns))
        pixels: Tensor = rows.unflatten(2, (columns, 3)).permute(0, 3, 1, 2)
        return pixels.contiguous(memory_format=torch.channels_last)

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
