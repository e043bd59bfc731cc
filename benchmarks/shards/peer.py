"""Install img2dataset in a virtual environment of its own."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from benchmarks import peer_environment

ENVIRONMENT = peer_environment.ENVIRONMENTS / "img2dataset"
NEWEST_PYTHON = 3, 12
PHOTOGRAPHS = ("astronaut.png", "coffee.png", "chelsea.png", "rocket.jpg", "motorcycle_left.png")
"""The colour photographs among scikit-image's pictures."""


def ensure_environment() -> None:
    peer_environment.ensure_environment("img2dataset", _python())


def command() -> str:
    return str(ENVIRONMENT / "bin" / "img2dataset")


def photographs() -> list[Path]:
    (folder,) = ENVIRONMENT.glob("lib/python3*/site-packages/skimage/data")
    return [folder / name for name in PHOTOGRAPHS]


def _python() -> str:
    if sys.version_info[:2] <= NEWEST_PYTHON:
        return sys.executable
    for minor in range(NEWEST_PYTHON[1], 9, -1):
        found = shutil.which(f"python3.{minor}")
        if found is not None:
            return found
    raise ValueError("img2dataset 1.47 needs Python 3.10, 3.11 or 3.12 on the PATH; this is a newer one")
