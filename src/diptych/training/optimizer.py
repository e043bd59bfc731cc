"""AdamW and the learning-rate schedule of the paper (section 2.5, table 18), in samples instead of steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from diptych.config.schema import OptimizerConfig
from diptych.training.half_moments import HalfMomentsAdamW, zero_state

TOWERS = ("image", "text")
SCALE_GROUP = "logit_scale"
"""The name of the parameter group with only logit_scale, so that its fp32 master can be clamped at every ZeRO stage."""


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Groups for the optimizer: of each tower the parameters with and without weight decay, and logit_scale.

    Decoupled decay acts on "all weights that are not gains or biases" (section 2.5): on parameters with at least two
    dimensions, embeddings included. A dimension of size one does not count: timm's class token is [1, 1, width].
    """
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_decayed = sum(size > 1 for size in parameter.shape) >= 2
        tower = name.partition(".")[0]
        group = f"{tower} {'decayed' if is_decayed else 'others'}" if tower in TOWERS else name
        decay = config.weight_decay if is_decayed else 0.0
        groups.setdefault(group, {"name": group, "params": [], "weight_decay": decay})["params"].append(parameter)
    return list(groups.values())


def tower_of(group: Mapping[str, Any]) -> str | None:
    """The tower whose parameters a group holds; None for logit_scale and logit_bias."""
    tower = group["name"].partition(" ")[0]
    return tower if tower in TOWERS else None


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    kind = HalfMomentsAdamW if config.moments == "bf16" else torch.optim.AdamW
    return kind(
        parameter_groups(model, config),
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        fused=True,
    )


def start_state(parameter: Tensor, config: OptimizerConfig) -> dict[str, Tensor]:
    """AdamW's state for a parameter before its first step."""
    return zero_state(parameter, torch.bfloat16 if config.moments == "bf16" else torch.float32)


def learning_rate_at(samples_seen: int, batch: int, total_samples: int, config: OptimizerConfig) -> float:
    """The learning rate of the step that starts after `samples_seen` samples and processes `batch` more.

    A linear warm-up that counts the step's own batch, then a half cosine that would reach 0 at `total_samples`. It
    equals open_clip's schedule if warm-up and total are multiples of the batch.
    """
    if samples_seen < config.warmup_samples:
        return config.learning_rate * min(1.0, (samples_seen + batch) / config.warmup_samples)
    passed = (samples_seen - config.warmup_samples) / (total_samples - config.warmup_samples)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * passed))
