"""AdamW and the learning-rate schedule of the paper (section 2.5, table 18), in samples instead of steps."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from diptych.config.schema import OptimizerConfig

SCALE_GROUP = "scale"
"""The group of logit_scale alone, so that its fp32 master can be found and clamped at every ZeRO stage."""


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Decayed parameters, the others, and logit_scale.

    Decoupled decay acts on "all weights that are not gains or biases" (section 2.5): on parameters with at least two
    dimensions, embeddings included. A dimension of size one does not count: timm's class token is [1, 1, width].
    """
    decayed, others, scale = [], [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if name == "logit_scale":
            scale.append(parameter)
        elif sum(size > 1 for size in parameter.shape) >= 2:
            decayed.append(parameter)
        else:
            others.append(parameter)
    groups = [
        {"name": "decayed", "params": decayed, "weight_decay": config.weight_decay},
        {"name": "others", "params": others, "weight_decay": 0.0},
        {"name": SCALE_GROUP, "params": scale, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        parameter_groups(model, config),
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        fused=True,
    )


def learning_rate_at(samples_seen: int, batch: int, total_samples: int, config: OptimizerConfig) -> float:
    """The rate of the step that starts after `samples_seen` samples and takes `batch` more.

    Linear warm-up that counts the step's own batch, then a half cosine that would reach 0 at `total_samples`:
    open_clip's schedule, where warm-up and total are multiples of the batch.
    """
    if samples_seen < config.warmup_samples:
        return config.learning_rate * min(1.0, (samples_seen + batch) / config.warmup_samples)
    passed = (samples_seen - config.warmup_samples) / (total_samples - config.warmup_samples)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * passed))
