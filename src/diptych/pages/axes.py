"""The frame of a chart, round numbers along its axes, and short forms of numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from diptych.terminal import counted


@dataclass(frozen=True)
class Frame:
    """The rectangle of a plot in its SVG: pixels from the left and from the top."""

    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int

    def x(self, share: float) -> float:
        """The place of a share of the rectangle's width."""
        return round(self.left + share * (self.right - self.left), 1)

    def y(self, share: float) -> float:
        """The place of a share of the rectangle's height, from its bottom up."""
        return round(self.bottom - share * (self.bottom - self.top), 1)


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers from low to high, 1, 2 or 5 times a power of ten apart."""
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = min((1, 2, 5, 10), key=lambda factor: abs(math.log(factor * power / raw))) * power
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def logarithmic_ticks(low: float, high: float) -> list[float]:
    """Numbers above zero from low to high: 1, 2 or 5 times powers of ten, the powers alone, or else evenly apart."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 5), (1,)):
        inside = [step * 10.0**power for power in powers for step in steps]
        inside = [number for number in inside if low * (1 - 1e-9) <= number <= high * (1 + 1e-9)]
        if len(inside) < 2:
            return [number for number in ticks(low, high, 4) if number > 0]
        if len(inside) <= 6:
            break
    return inside


def different_numbers(values: Sequence[float]) -> list[str]:
    """Short numbers with as many digits as it takes for different labels."""
    labels: list[str] = []
    for digits in range(3, 12):
        labels = [short_number(value, digits) for value in values]
        if len(set(labels)) == len(set(values)):
            break
    return labels


def short_number(value: float, digits: int = 3) -> str:
    """Three digits, or as many as asked for, and a unit: 12.8B, 51.2k, 0.0015."""
    if value != 0 and abs(value) < 1e-3:
        return f"{value:.{digits - 1}g}"
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size * 0.9995:
            return f"{value / size:.{digits}g}{unit}"
    return f"{value:.{digits}g}"


def short_size(num_bytes: float) -> str:
    """Bytes with three digits and a unit: `3.9 GB`; `1 byte`, `12 bytes`."""
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if num_bytes < 999.5 or unit == "TB":
            break
        num_bytes /= 1000
    if unit == "bytes":
        return counted(round(num_bytes), "byte")
    return f"{num_bytes:.3g} {unit}" if num_bytes < 999.5 else f"{num_bytes:,.0f} {unit}"
