"""What this machine has: the speed of its GPU, its CPUs, its memory allocator."""

from __future__ import annotations

import ctypes
import math
import os
import re
import resource

PEAK_TERAFLOPS = {
    "B200": 2250, "GB200": 2250, "H200": 989, "GH200": 989, "H100 PCIe": 756, "H100 NVL": 835, "H100": 989,
    "A100": 312, "L40S": 362, "L40": 181, "L4": 121, "A40": 150, "A10G": 70, "A10": 125, "A6000": 155,
    "RTX 6000 Ada": 364, "4090": 165, "3090": 71,
}  # fmt: skip
"""Part of a GPU's name → teraFLOPs a second in dense bf16 matrix products, from NVIDIA's data sheets."""


def peak_teraflops(gpu_name: str) -> float | None:
    """The highest speed of the GPU in bf16; None if unknown."""
    fitting = [name for name in PEAK_TERAFLOPS if re.search(rf"\b{name}\b", gpu_name)]
    return PEAK_TERAFLOPS[max(fitting, key=len)] if fitting else None


def usable_cpus() -> int:
    """The number of CPUs that this process may use, which on a cluster may be fewer than the machine has.

    macOS has no such limit; there it is the machine's number.
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def allow_open_files(number: int) -> None:
    """Let this process and those that it starts open so many files, as far as the system permits it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    if soft != unlimited and soft < number:
        resource.setrlimit(resource.RLIMIT_NOFILE, (number if hard == unlimited else min(number, hard), hard))


def open_files_limit() -> float:
    """How many files this process may open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return math.inf if soft == resource.RLIM_INFINITY else soft


def keep_freed_memory() -> None:
    """Make glibc keep the memory that this process frees, instead of returning it to the system.

    A training step frees gigabytes that the next step needs again. Getting them back page by page takes a tenth of a
    step on a CPU. Does nothing with another C library.
    """
    malloc_options = getattr(ctypes.CDLL(None), "mallopt", None)
    if malloc_options is not None:
        for option, threshold_bytes in ((_MMAP_THRESHOLD, 2**30), (_TRIM_THRESHOLD, 2**31 - 1)):
            malloc_options(option, threshold_bytes)


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Constants of glibc's malloc.h."""
