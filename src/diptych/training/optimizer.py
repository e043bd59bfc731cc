"""The optimizer, and the learning-rate schedule, in samples instead of steps."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from diptych.config.schema import OptimizerConfig
from diptych.training.half_moments import ADAMW_MOMENTS, HalfMomentsAdamW, zero_state
from diptych.training.muon import MUON_MOMENTS, Muon
from diptych.training.parameter_groups import parameter_groups


def make_optimizer(model: nn.Module, config: OptimizerConfig, precision: str) -> torch.optim.Optimizer:
    """The optimizer for all parameters of the model.

    precision: fp32 or bf16, in which Muon orthogonalises matrices.
    """
    groups = parameter_groups(model, config)
    kind = HalfMomentsAdamW if config.moments == "bf16" else torch.optim.AdamW
    adamw = kind(
        # torch refuses an empty list, and all that is not frozen may be Muon's.
        [group for group in groups if not group["is_muon"]] or [{"params": []}],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        fused=True,
    )
    return (
        Muon(groups, adamw, torch.bfloat16 if precision == "bf16" else torch.float32)
        if config.name == "muon"
        else adamw
    )


def start_state(parameter: Tensor, config: OptimizerConfig, *, is_muon: bool) -> dict[str, Tensor]:
    """The optimizer's state for a parameter before its first step."""
    dtype = torch.bfloat16 if config.moments == "bf16" else torch.float32
    return zero_state(parameter, dtype, MUON_MOMENTS if is_muon else ADAMW_MOMENTS)


def learning_rate_at(samples_seen: int, batch: int, total_samples: int, config: OptimizerConfig) -> float:
    """The learning rate of the step that starts after `samples_seen` samples and processes `batch` more.

    A linear warm-up that counts the step's own batch, then `config.schedule`. The cosine and a cool-down would reach 0
    at `total_samples`. The cosine equals open_clip's if warm-up and total are multiples of the batch.
    """
    highest, warmup = config.learning_rate, config.warmup_samples
    if samples_seen < warmup:
        return highest * min(1.0, (samples_seen + batch) / warmup)
    if config.schedule == "cosine":
        passed = (samples_seen - warmup) / (total_samples - warmup)
        return highest * 0.5 * (1 + math.cos(math.pi * passed))
    rate = highest if config.schedule == "wsd" else highest * math.sqrt(warmup / samples_seen)
    cooled = samples_seen - (total_samples - config.cooldown_samples)
    return rate * (1 - math.sqrt(cooled / config.cooldown_samples)) if cooled > 0 else rate
