"""Choose precision and kernels for a device, and explain why a GPU cannot be used."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch

from diptych.errors import UserError

DEVICE_FILES = Path("/dev")
HIDDEN = ("", "-1", "NoDevFiles")
"""Values of CUDA_VISIBLE_DEVICES that hide all GPUs on purpose; the last is set by Slurm."""
NO_GPU_OF_CONTAINER = ("", "void", "none")
"""Values of NVIDIA_VISIBLE_DEVICES in a container that was started without a GPU to compute on."""


def unusable_gpu() -> str | None:
    """Why torch cannot use this machine's NVIDIA GPU, and the way out; None if it can, or if there is no GPU.

    A container that was started with GPUs counts as having one, even if none is visible in it. A GPU that
    CUDA_VISIBLE_DEVICES hides does not count.
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
    """Raise UserError if a run would use the CPU because the machine's GPU does not work."""
    if why := unusable_gpu():
        raise UserError(why)


def precision_on(device: torch.device, asked: Literal["auto", "fp32", "bf16"]) -> Literal["fp32", "bf16"]:
    """The precision asked for; `auto` means bf16 if the device supports it natively (not by emulation), else fp32."""
    if asked != "auto":
        return asked
    has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if has_bf16 else "fp32"


@contextmanager
def plain_arithmetic() -> Iterator[None]:
    """Use torch's own choice of kernels during the block, as in a process that never called `set_arithmetic`."""
    cuda = torch.backends.cuda
    fused, tf32 = cuda.flash_sdp_enabled(), cuda.matmul.allow_tf32
    cuda.enable_flash_sdp(True)
    cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        cuda.enable_flash_sdp(fused)
        cuda.matmul.allow_tf32 = tf32


def set_arithmetic(device: torch.device, precision: Literal["fp32", "bf16"], *, deterministic: bool) -> None:
    """Choose kernels for the whole process; call it before anything runs on the device.

    On CUDA, products of fp32 matrices are computed in TF32 (ten bits of mantissa, sums in fp32). This is several times
    as fast, and changes the gradient of the loss by less than 5e-4. On a CPU in bf16, attention is computed with plain
    matrix products: torch's fused kernel is slower up to some 200 tokens, by half at 50 (EPYC with AVX-512). In fp32
    the fused kernel is faster and stays.
    """
    torch.backends.cuda.enable_flash_sdp(device.type != "cpu" or precision != "bf16")  # the switch covers CPUs too
    if device.type == "cuda":
        # The new names of these settings cannot be mixed with the old ones, which other libraries read.
        warnings.filterwarnings("ignore", message="Please use the new API settings to control TF32 behavior")
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
        torch.use_deterministic_algorithms(True)
