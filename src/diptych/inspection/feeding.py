"""Compute how many cores decode as fast as a GPU trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from diptych.config.schema import ModelConfig
from diptych.errors import UserError
from diptych.machine import PEAK_TERAFLOPS, peak_teraflops
from diptych.model.flops import TrainingFlops
from diptych.plan.speed import UTILISATIONS

MODEL_FLOPS_UTILISATION = UTILISATIONS["high"]
"""The share of a GPU's peak that a good run reaches. A run that reaches less needs fewer cores."""
USUAL_GPUS = ("A100", "H100", "B200")


@dataclass(frozen=True)
class Appetite:
    """What one GPU takes."""

    gpu: str
    samples_per_second: float
    cores: float | None
    """None if no sample could be timed."""


@dataclass(frozen=True)
class Feeding:
    """What it takes to keep a GPU busy with a model."""

    model: str
    mean_tokens: float
    flops_of_pair: int
    """Floating point operations of a forward and backward of a pair with a caption of this length."""
    gpus: tuple[Appetite, ...]
    model_flops_utilisation: float = MODEL_FLOPS_UTILISATION


def feeding(
    config: ModelConfig,
    vocab_size: int,
    gpus: Sequence[str],
    *,
    mean_tokens: float,
    samples_per_core_second: float | None,
) -> Feeding:
    """What each GPU takes: samples/s = its peak x MODEL_FLOPS_UTILISATION / FLOPs of a pair; cores = that / speed.

    Raises:
        UserError: the peak of a GPU is not known.
    """
    flops = TrainingFlops(config, vocab_size).of_pair(mean_tokens)
    rates = {gpu: _peak(gpu) * 1e12 * MODEL_FLOPS_UTILISATION / flops for gpu in gpus}
    speed = samples_per_core_second
    taken = tuple(Appetite(gpu, rate, None if speed is None else rate / speed) for gpu, rate in rates.items())
    return Feeding(config.image.name, mean_tokens, flops, taken)


def usual_gpus() -> list[str]:
    """This machine's GPU, if there is one whose speed is known, and the usual ones."""
    here = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return [*([here] if peak_teraflops(here) else []), *USUAL_GPUS]


def check_gpu(gpu: str) -> str:
    """The GPU's name, as the table of peaks writes it if it is there.

    Raises:
        UserError: its peak is not known.
    """
    name = next((known for known in PEAK_TERAFLOPS if known.lower() == gpu.lower()), gpu)
    _peak(name)
    return name


def _peak(gpu: str) -> float:
    peak = peak_teraflops(gpu)
    if peak is None:
        raise UserError(f"--gpu {gpu}: its speed is not known; name one of {', '.join(PEAK_TERAFLOPS)}")
    return peak
