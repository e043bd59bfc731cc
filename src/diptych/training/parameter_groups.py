"""Sort the model's parameters into groups that the optimizer updates in the same way."""

from __future__ import annotations

from typing import Any

from torch import nn

from diptych.config.schema import OptimizerConfig
from diptych.model.dual_encoder import DualEncoder
from diptych.model.image_tower import blocks_of

TOWERS = ("image", "text")
SCALE_GROUP = "logit_scale"
"""The name of the parameter group with only logit_scale, so that its fp32 master can be clamped at every ZeRO stage."""


MUON_RATE = 2.0
"""Muon's learning rate divided by AdamW's. At equal rates both move the weights equally far (`muon.RMS_OF_ADAMW`), and
Muon learns as stably at twice that."""


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Groups for the optimizer: of each tower the parameters with and without weight decay, and logit_scale.

    Decoupled decay acts on "all weights that are not gains or biases" (section 2.5): on parameters with at least two
    dimensions, embeddings included. A dimension of size one does not count: timm's class token is [1, 1, width].
    """
    matrices = set(hidden_matrices(model)) if config.name == "muon" else set()
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_decayed = sum(size > 1 for size in parameter.shape) >= 2
        is_muon = name in matrices
        tower = name.partition(".")[0]
        kind = "matrices" if is_muon else "decayed" if is_decayed else "others"
        label = f"{tower} {kind}" if tower in TOWERS else name
        group = {
            "name": label,
            "params": [],
            "weight_decay": config.weight_decay if is_decayed else 0.0,
            "learning_rate_scale": MUON_RATE if is_muon else 1.0,
            "is_muon": is_muon,
        }
        groups.setdefault(label, group)["params"].append(parameter)
    return list(groups.values())


def hidden_matrices(model: nn.Module) -> list[str]:
    """The names of the weights that `optimizer.name: muon` updates by Muon: matrices inside the blocks of both towers.

    They are the weights of linear layers, attention's fused projections included, and of convolutions that mix
    channels, each as a matrix [out, in x height x width]. Embeddings, the patch embedding included, gains, biases,
    tables of relative positions, depthwise convolutions, and what comes after the blocks stay with AdamW.
    """
    assert isinstance(model, DualEncoder)
    found = set()
    for block in (*blocks_of(model.image.trunk), *model.text.transformer.resblocks):
        for module in block.modules():
            if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1):
                found.add(id(module.weight))
            if isinstance(fused := getattr(module, "in_proj_weight", None), nn.Parameter):
                found.add(id(fused))
    return [name for name, parameter in model.named_parameters() if id(parameter) in found]


def tower_of(name: str) -> str | None:
    """The tower of a parameter, or of a group of them, by its name; None for logit_scale and logit_bias."""
    tower = name.replace(".", " ").partition(" ")[0]
    return tower if tower in TOWERS else None
