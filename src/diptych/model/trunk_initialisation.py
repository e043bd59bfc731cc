"""Initialise the trunk of an image tower as OpenAI's code does."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import AttentionPool2d
from timm.models.byobnet import ByobNet
from timm.models.vision_transformer import VisionTransformer
from torch import nn


@torch.no_grad()
def initialise_as_openai(trunk: nn.Module) -> None:
    """Initialise a vision transformer or a CLIP-ResNet as OpenAI's code does; others stay as timm initialised them."""
    if isinstance(trunk, VisionTransformer):
        _initialise_transformer(trunk)
    elif isinstance(trunk, ByobNet) and isinstance(trunk.head, AttentionPool2d):
        _initialise_clip_resnet(trunk)


def _initialise_transformer(trunk: VisionTransformer) -> None:
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


def _initialise_clip_resnet(trunk: ByobNet) -> None:
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
