"""The GPUs that a run can be planned for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from diptych.errors import UserError
from diptych.machine import PEAK_TERAFLOPS
from diptych.terminal import printable


@dataclass(frozen=True)
class Gpu:
    """A GPU in the machine that it is usually sold in."""

    name: str
    """As PEAK_TERAFLOPS names it."""
    memory_gib: float
    """What torch reports as total memory; less than the name says."""
    link_gb_per_second: float
    """To the other GPUs of its machine, in one direction."""
    network_gbit_per_second: float
    """Of the whole machine to others, in one direction."""
    per_machine: int = 8

    @property
    def peak_flops(self) -> float:
        """Floating point operations a second, in dense bf16 matrix products."""
        return PEAK_TERAFLOPS[self.name] * 1e12


GPUS: Mapping[str, Gpu] = {
    "b200": Gpu("B200", 178.4, 900, 3200),
    "gb200": Gpu("GB200", 184.0, 900, 1600, per_machine=4),
    "h200": Gpu("H200", 139.8, 450, 3200),
    "gh200": Gpu("GH200", 94.5, 450, 400, per_machine=1),
    "h100": Gpu("H100", 79.1, 450, 3200),
    "h100-nvl": Gpu("H100 NVL", 93.1, 300, 1600),
    "h100-pcie": Gpu("H100 PCIe", 79.1, 64, 400),
    "a100-80": Gpu("A100", 79.1, 300, 1600),
    "a100-40": Gpu("A100", 39.4, 300, 1600),
    "l40s": Gpu("L40S", 44.4, 32, 400),
    "a40": Gpu("A40", 44.4, 32, 200),
    "l4": Gpu("L4", 22.0, 16, 100),
    "a10g": Gpu("A10G", 22.0, 32, 100),
    "4090": Gpu("4090", 23.5, 32, 100),
    "3090": Gpu("3090", 23.5, 32, 100),
}
"""Name on the command line → GPU. Links are from NVIDIA's data sheets; networks are those of the usual machines: DGX
and HGX with a card of 400 Gbit/s for each GPU (A100: 200), others with one card."""


def gpu_named(name: str) -> Gpu:
    """The GPU of this name.

    Raises:
        UserError: it is not in GPUS.
    """
    gpu = GPUS.get(name.lower())
    if gpu is None:
        raise UserError(f"--gpu {printable(name, 40)}: not known; name one of {', '.join(GPUS)}")
    return gpu
