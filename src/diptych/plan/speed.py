"""Estimate how fast a number of GPUs trains a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from diptych.plan.gpus import Gpu

UTILISATIONS: Mapping[str, float] = {"low": 0.11, "typical": 0.20, "high": 0.40}
"""Share of a GPU's peak that training reaches, repeated operations included.

From published runs of CLIP models: low is open_clip's ViT-B/32 on 128 A100 (4,600 GPU-hours for 12.8 G samples,
docs/PRETRAINED.md); typical is NVIDIA NeMo's g/14 on H100 (0.19 to 0.21, its page on CLIP's performance); high is the
same on A100 (0.39).
"""
REPEATED = 1 / 3
"""Operations of a second forward relative to those of a forward and backward: of checkpointed blocks (arXiv 1604.06174,
section 4.3), or of a batch that is processed in parts (GradCache, arXiv 2101.06983, section 3.3)."""
LAUNCH_SECONDS_OF_BLOCK = {0: 0.0012, 1: 0.0013, 2: 0.0013, 3: 0.010}
"""ZeRO stage → seconds that Python needs to start the kernels of a block's forward, backward and update.

Measured with 24 tiny blocks on one core, with 8 and 512 ranks of which only one existed: 33, 38 to 45, 44 and 245 to
310 ms a step at stages 0 to 3, of which about three quarters are Python; 34 to 41 ms at stages 0 and 1 with
`machine.compile_blocks`, which calls fewer kernels but checks more before.
"""


@dataclass(frozen=True)
class Speed:
    """The speed of all GPUs together."""

    samples_per_second: float
    model_flops_utilisation: float
    """Operations of the model that are computed, without repeated ones, relative to the peak of all GPUs (PaLM, arXiv
    2204.02311, appendix B)."""
    limit: str
    """What a step takes most of its time for: computing, communication or launches."""


def speed(
    gpu: Gpu,
    num_gpus: int,
    *,
    pairs_of_rank: int,
    global_batch_size: int,
    flops_of_sample: float,
    repeats: int,
    launch_seconds: float,
    communication_seconds: float,
    utilisation: float,
) -> Speed:
    """The speed if kernels reach this share of the peak.

    A step takes as long as the slowest of computing, communication and launches of kernels, since each can go on while
    the others do (the roofline model of Williams, Waterman and Patterson, 2009).

    repeats: how many forwards are computed a second time.
    """
    computed = pairs_of_rank * flops_of_sample * (1 + repeats * REPEATED)
    seconds = {
        "computing": computed / (gpu.peak_flops * utilisation),
        "communication": communication_seconds,
        "launches": launch_seconds,
    }
    limit = max(seconds, key=seconds.__getitem__)
    samples_per_second = global_batch_size / seconds[limit]
    return Speed(samples_per_second, samples_per_second * flops_of_sample / (num_gpus * gpu.peak_flops), limit)
