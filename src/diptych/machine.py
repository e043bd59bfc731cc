"""What this machine has, on each system that we run on."""

from __future__ import annotations

import ctypes
import os
import re

PEAK_TERAFLOPS = {
    "B200": 2250, "GB200": 2250, "H200": 989, "GH200": 989, "H100 PCIe": 756, "H100 NVL": 835, "H100": 989,
    "A100": 312, "L40S": 362, "L40": 181, "L4": 121, "A40": 150, "A10G": 70, "A10": 125, "A6000": 155,
    "RTX 6000 Ada": 364, "4090": 165, "3090": 71,
}  # fmt: skip
"""By a word of a GPU's name: dense products of bf16 numbers, as NVIDIA's data sheets give them."""


def peak_teraflops(gpu_name: str) -> float | None:
    """What the GPU could compute in bf16 at most; None where it is not known."""
    fitting = [name for name in PEAK_TERAFLOPS if re.search(rf"\b{name}\b", gpu_name)]
    return PEAK_TERAFLOPS[max(fitting, key=len)] if fitting else None


def usable_cpus() -> int:
    """The CPUs that this process may use, which on a cluster are fewer than the machine has; macOS knows only those."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def keep_freed_memory() -> None:
    """Have the C library keep the memory that this process frees instead of returning it to the system.

    A training step frees gigabytes that the next one needs again. To get them back page by page takes a tenth of a step
    on a CPU. Other C libraries than glibc are left as they are.
    """
    malloc_options = getattr(ctypes.CDLL(None), "mallopt", None)
    if malloc_options is not None:
        for option, threshold_bytes in ((_MMAP_THRESHOLD, 2**30), (_TRIM_THRESHOLD, 2**31 - 1)):
            malloc_options(option, threshold_bytes)


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Names of glibc's malloc.h."""
