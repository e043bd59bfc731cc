"""What this machine has, on each system that we run on."""

from __future__ import annotations

import os


def usable_cpus() -> int:
    """The CPUs that this process may use, which on a cluster are fewer than the machine has; macOS knows only those."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
