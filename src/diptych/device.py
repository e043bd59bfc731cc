"""What this process can compute on, and how it computes there."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Literal

import torch

from diptych.errors import UserError

DEVICE_FILES = Path("/dev")
HIDDEN = ("", "-1", "NoDevFiles")
"""Of CUDA_VISIBLE_DEVICES: no GPU on purpose; the last is Slurm's."""
NO_GPU_OF_CONTAINER = ("", "void", "none")
"""Of NVIDIA_VISIBLE_DEVICES: what a container is given where it asks for no GPU, or for none to compute on."""


def unusable_gpu() -> str | None:
    """Why torch cannot use the NVIDIA GPU of this machine, and the way out; None if it can, or if there is none.

    There is one too where a container was started for one, and none where CUDA_VISIBLE_DEVICES hides it.
    """
    if torch.cuda.is_available() or os.environ.get("CUDA_VISIBLE_DEVICES", "all") in HIDDEN:
        return None
    seen = sorted(str(file) for file in DEVICE_FILES.glob("nvidia[0-9]*"))
    asked_for = os.environ.get("NVIDIA_VISIBLE_DEVICES", "")
    if seen:
        sign = f"this machine has an NVIDIA GPU ({seen[0]})"
    elif asked_for not in NO_GPU_OF_CONTAINER:
        sign = f"this container is meant to have an NVIDIA GPU (NVIDIA_VISIBLE_DEVICES={asked_for})"
    else:
        return None
    return (
        f"{sign}, and PyTorch {torch.__version__} cannot use it: {_torchs_reason()}; give it what it needs (a driver, "
        f"PyTorch for it, `docker run --gpus all`), or set CUDA_VISIBLE_DEVICES= to use the CPU on purpose"
    )


def _torchs_reason() -> str:
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return str(error).strip().partition("\n")[0].rstrip(".")
    return "it finds no GPU"


def refuse_unusable_gpu() -> None:
    """Raise UserError if a run would go to the CPU of a machine that has a GPU."""
    if why := unusable_gpu():
        raise UserError(why)


def precision_on(device: torch.device, asked: Literal["auto", "fp32", "bf16"]) -> Literal["fp32", "bf16"]:
    """The precision asked for; for `auto`, bf16 where the device computes in it, not where it pretends to."""
    if asked != "auto":
        return asked
    has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if has_bf16 else "fp32"


def set_arithmetic(device: torch.device, precision: Literal["fp32", "bf16"], *, deterministic: bool) -> None:
    """Choose kernels for the whole process, before the first is started on the device.

    Products of fp32 matrices are computed in TF32 on CUDA (ten bits of mantissa, sums in fp32): several times as fast,
    and of the loss's gradient less than 5e-4 away. On a CPU attention in bf16 is taken apart into plain products: up to
    some 200 tokens torch's kernel for it is slower, at 50 by half (EPYC with AVX-512; in fp32 it is faster).
    """
    torch.backends.cuda.enable_flash_sdp(device.type != "cpu" or precision != "bf16")  # of CPUs too
    if device.type == "cuda":
        # The newer names of the same settings cannot be mixed with these, which others read.
        warnings.filterwarnings("ignore", message="Please use the new API settings to control TF32 behavior")
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
        torch.use_deterministic_algorithms(True)
