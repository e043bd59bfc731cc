"""Sort the model's parameters into groups that the optimizer updates in the same way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from diptych.config.schema import OptimizerConfig
from diptych.errors import UserError
from diptych.model.dual_encoder import TrainedModel, blocks_of_towers
from diptych.model.freezing import matching
from diptych.model.trunk import blocks_of

TOWERS = ("image", "text")
SCALE_GROUP = "logit_scale"
"""The name of the parameter group with only logit_scale, so that its fp32 master can be clamped at every ZeRO stage."""
PROJECTIONS = ("image.proj", "text.text_projection")
"""The projections to the embedding; they are used after the blocks, and defined before them."""
MUON_RATE = 2.0
"""Muon's learning rate divided by AdamW's. At equal rates both move the weights equally far (`muon.RMS_OF_ADAMW`), and
Muon learns as stably at twice that."""


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Groups of the trained parameters for the optimizer, each with its weight decay and learning rate.

    Decoupled decay acts on "all weights that are not gains or biases" (section 2.5): on parameters with at least two
    dimensions, embeddings included. A dimension of size one does not count: timm's class token is [1, 1, width].

    Raises:
        UserError: a pattern of `optimizer.groups` matches no parameter, or `optimizer.layer_decay` finds no layers.
    """
    parameters = dict(model.named_parameters())
    matrices = set(hidden_matrices(model)) if config.name == "muon" else set()
    scales = {} if config.layer_decay is None else layer_scales(model, config.layer_decay)
    set_by_name: dict[str, dict[str, float]] = {name: {} for name in parameters}
    matched = matching(config.groups, parameters, "optimizer.groups")
    for names, settings in zip(matched, config.groups.values(), strict=True):
        for name in names:
            set_by_name[name].update(settings)

    groups: dict[tuple[str, float, float], dict[str, Any]] = {}
    for name, parameter in parameters.items():
        if not parameter.requires_grad:
            continue
        is_decayed = sum(size > 1 for size in parameter.shape) >= 2
        is_muon = name in matrices
        tower = name.partition(".")[0]
        kind = "matrices" if is_muon else "decayed" if is_decayed else "others"
        label = f"{tower} {kind}" if tower in TOWERS else name
        decay = set_by_name[name].get("weight_decay", config.weight_decay) if is_decayed else 0.0
        scale = set_by_name[name].get("learning_rate_scale", 1.0) * scales.get(name, 1.0)
        group = {
            "name": label,
            "params": [],
            "weight_decay": decay,
            "learning_rate_scale": scale * MUON_RATE if is_muon else scale,
            "is_muon": is_muon,
        }
        groups.setdefault((label, decay, scale), group)["params"].append(parameter)
    return list(groups.values())


@dataclass(frozen=True)
class ParameterCounts:
    """How many parameters a model has, and what happens to them."""

    whole: int
    trained: int
    by_muon: int
    """Of the trained ones those that Muon updates."""


def count_parameters(model: nn.Module, config: OptimizerConfig) -> ParameterCounts:
    matrices = set(hidden_matrices(model)) if config.name == "muon" else set()
    named = list(model.named_parameters())
    return ParameterCounts(
        whole=sum(parameter.numel() for _, parameter in named),
        trained=sum(parameter.numel() for _, parameter in named if parameter.requires_grad),
        by_muon=sum(parameter.numel() for name, parameter in named if name in matrices),
    )


def layer_scales(model: nn.Module, decay: float) -> dict[str, float]:
    """Parameter name → factor on the learning rate: `decay` for each layer below the last of its tower.

    In the order of their definition, parameters before the first block are layer 0, those up to the end of the n-th
    block layer n, and those after the last block, projections included, the last layer.

    Raises:
        UserError: the image tower has no blocks.
    """
    assert isinstance(model, TrainedModel)
    scales = {}
    towers = {"image": blocks_of(model.image.trunk)}
    if model.text is not None:
        towers["text"] = list(model.text.transformer.resblocks)
    for tower, blocks in towers.items():
        if not blocks:
            trunk = type(model.image.trunk).__name__
            raise UserError(
                f"optimizer.layer_decay: the image tower ({trunk}) has no blocks that are known by name; leave it out"
            )
        numbers = {id(parameter): n for n, block in enumerate(blocks, start=1) for parameter in block.parameters()}
        last, layer = len(blocks) + 1, 0
        for name, parameter in model.get_submodule(tower).named_parameters(tower):
            layer = numbers.get(id(parameter), last if layer == len(blocks) else layer)
            scales[name] = 1.0 if name in PROJECTIONS else decay ** (last - layer)
    return scales


def hidden_matrices(model: nn.Module) -> list[str]:
    """The names of the weights that `optimizer.name: muon` updates by Muon: matrices inside the blocks of both towers.

    They are the trained weights of linear layers, attention's fused projections included, and of convolutions that mix
    channels, each as a matrix [out, in x height x width]. Embeddings, the patch embedding included, gains, biases,
    tables of relative positions, depthwise convolutions, and what comes after the blocks stay with AdamW.
    """
    assert isinstance(model, TrainedModel)
    found = set()
    for block in blocks_of_towers(model):
        for module in block.modules():
            if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1):
                found.add(id(module.weight))
            if isinstance(fused := getattr(module, "in_proj_weight", None), nn.Parameter):
                found.add(id(fused))
    return [name for name, parameter in model.named_parameters() if id(parameter) in found and parameter.requires_grad]


def describe_muon(model: nn.Module) -> str:
    """What Muon updates, in a line: how many parameters, and how many matrices of each tower."""
    assert isinstance(model, TrainedModel)
    parameters, names = dict(model.named_parameters()), hidden_matrices(model)
    # At ZeRO stage 3 a parameter that is not gathered has no elements.
    num_parameters = sum(getattr(parameters[name], "ds_numel", parameters[name].numel()) for name in names)
    towers = {f"image tower ({type(model.image.trunk).__name__})": "image", "text tower": "text"}
    shown = [
        f"{title} {sum(tower_of(name) == tower for name in names)}"
        for title, tower in towers.items()
        if getattr(model, tower) is not None
    ]
    return f"Muon updates {num_parameters / 1e6:.2f} M parameters, the matrices in known blocks: {', '.join(shown)}"


def refuse_idle_muon(model: nn.Module) -> None:
    """Raise UserError if `optimizer.name: muon` would update nothing."""
    assert isinstance(model, TrainedModel)
    if not hidden_matrices(model):
        raise UserError(
            f"optimizer.name muon would update nothing: it takes the matrices in the blocks of towers, and all blocks "
            f"are frozen or, in the image tower ({type(model.image.trunk).__name__}), not known by name; set "
            f"optimizer.name to adamw"
        )


def refuse_idle_token_head(model: nn.Module) -> None:
    """Raise UserError if the token head would train nothing but itself."""
    assert isinstance(model, TrainedModel)
    if not any(parameter.requires_grad for parameter in model.image.trunk.parameters()):
        raise UserError(
            "loss.token_head.weight would train only the token head, which the finished model does not have: it reads "
            "the picture's feature before the projection, and model.freeze leaves nothing to train up to there; set "
            "loss.token_head.weight to 0, or freeze less of image.trunk.*"
        )


def tower_of(name: str) -> str | None:
    """The tower of a parameter, or of a group of them, by its name; None for logit_scale and logit_bias."""
    tower = name.replace(".", " ").partition(" ")[0]
    return tower if tower in TOWERS else None
