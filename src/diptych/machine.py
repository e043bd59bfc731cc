"""What this machine has, on each system that we run on."""

from __future__ import annotations

import ctypes
import os


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
