"""Options that several commands share."""

from __future__ import annotations

import argparse

from diptych.errors import UserError
from diptych.machine import usable_cpus
from diptych_shards.run.engine import Engine, LocalEngine, RayEngine


def positive(text: str) -> int:
    """Parse a whole number above 0, for argparse."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return int(text)


def add_processes(add: argparse._ActionsContainer, what: str) -> None:
    """`--processes N`, by default one for each CPU that we may use."""
    add.add_argument("--processes", type=positive, default=usable_cpus(), metavar="N",
                     help=f"{what} (default: the CPUs, %(default)s)")  # fmt: skip


def add_engine(add: argparse._ActionsContainer, what: str) -> None:
    """`--processes`, `--engine`, `--ray-address`."""
    add_processes(add, what)
    add.add_argument("--engine", choices=("local", "ray"), default="local", help="ray: OUT must be shared by its nodes")
    add.add_argument("--ray-address", metavar="ADDRESS", help="default: RAY_ADDRESS, or a cluster on this machine")


def engine_of(chosen: argparse.Namespace) -> Engine:
    """Make the engine that the options name.

    Raises:
        UserError: --ray-address is given without --engine ray.
    """
    if chosen.engine == "ray":
        return RayEngine(chosen.ray_address)
    if chosen.ray_address is not None:
        raise UserError(f"--ray-address {chosen.ray_address} is for --engine ray; add that, or leave it out")
    return LocalEngine(chosen.processes)
