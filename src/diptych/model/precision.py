"""Compute parts of the towers in fp32 at any precision of the run."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Switch off autocast in a block, for the last layer of a tower: in bf16 it would change the gradient by 0.2 %."""
    if device.type == "meta":  # autocast does not know this device, and nothing is computed on it
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
