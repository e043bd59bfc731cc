"""Estimate how fast a number of GPUs trains a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from diptych.plan.gpus import Gpu

UTILISATIONS: Mapping[str, float] = {"low": 0.11, "typical": 0.20, "high": 0.40}
"""Share of a GPU's peak that training reaches, counting blocks that are computed again.

Published runs of CLIP models: low is open_clip's ViT-B/32 on 128 A100 (4,600 GPU-hours for 12.8 G samples,
docs/PRETRAINED.md), typical is NVIDIA NeMo's g/14 on H100 (0.19 to 0.21, its CLIP performance page), high is the same
on A100 (0.39).
"""
RECOMPUTED = 4 / 3
"""Operations with checkpointed blocks, which have a second forward, relative to those without (arXiv 1604.06174)."""


@dataclass(frozen=True)
class Speed:
    """The speed of all GPUs together."""

    samples_per_second: float
    model_flops_utilisation: float
    """FLOPs of the model that are computed, without repeated ones, relative to the peak of all GPUs (PaLM, arXiv
    2204.02311, appendix B)."""


def speed(
    gpu: Gpu, num_gpus: int, global_batch_size: int, flops_of_sample: float, repeats: float, utilisation: float
) -> Speed:
    """The speed if each GPU reaches this share of its peak.

    repeats: operations that are computed relative to those of the model: 1, or RECOMPUTED.
    """
    rows = -(-global_batch_size // num_gpus)
    seconds = rows * flops_of_sample * repeats / (gpu.peak_flops * utilisation)
    samples_per_second = global_batch_size / seconds
    return Speed(samples_per_second, samples_per_second * flops_of_sample / (num_gpus * gpu.peak_flops))
