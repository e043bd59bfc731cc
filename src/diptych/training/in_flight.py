"""Copy numbers and times from a device without making it wait: they are read once its work is done."""

from __future__ import annotations

import time

import torch
from torch import Tensor


class Readout:
    """A copy of some numbers on its way to the host."""

    def __init__(self, numbers: Tensor):
        self._event: torch.cuda.Event | None = None
        self._numbers = numbers
        if numbers.is_cuda:
            self._numbers = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            self._numbers.copy_(numbers, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    def read(self) -> list[float]:
        """Wait until the numbers have arrived and return them."""
        if self._event is not None:
            self._event.synchronize()
        return self._numbers.tolist()


class StopWatch:
    """Measures how long each phase of a step takes on the device."""

    def __init__(self, device: torch.device):
        self._is_cuda = device.type == "cuda"
        self._marks: list[tuple[str, torch.cuda.Event | float]] = []
        self.mark("start")

    def mark(self, phase: str) -> None:
        """Mark the end of `phase` and the start of the next one."""
        if self._is_cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append((phase, event))
        else:
            self._marks.append((phase, time.perf_counter()))

    def seconds(self) -> dict[str, float]:
        """Seconds by phase. Call it only after the last phase has ended on the device."""
        pairs = zip(self._marks, self._marks[1:], strict=False)
        return {phase: _seconds_between(before, now) for (_, before), (phase, now) in pairs}


def _seconds_between(before: torch.cuda.Event | float, now: torch.cuda.Event | float) -> float:
    if isinstance(before, float) or isinstance(now, float):
        assert isinstance(before, float) and isinstance(now, float)
        return now - before
    return float(before.elapsed_time(now)) / 1000


def to_device(numbers: list[float], device: torch.device) -> Tensor:
    """Copy numbers to the device as f64[len(numbers)], without waiting for it."""
    tensor = torch.tensor(numbers, dtype=torch.float64, pin_memory=device.type == "cuda")
    return tensor.to(device, non_blocking=True)
