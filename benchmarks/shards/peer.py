"""Install img2dataset in a virtual environment of its own."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
REQUIREMENTS = ROOT / "benchmarks" / "peers" / "img2dataset.txt"
ENVIRONMENT = ROOT / ".venv-peers" / "img2dataset"
NEWEST_PYTHON = 3, 12
PHOTOGRAPHS = ("astronaut.png", "coffee.png", "chelsea.png", "rocket.jpg", "motorcycle_left.png")
"""The colour photographs among scikit-image's pictures."""


def ensure_environment() -> None:
    """Install it, unless it is already installed from the same requirements."""
    stamp = ENVIRONMENT / "installed-from.txt"
    if stamp.exists() and stamp.read_bytes() == REQUIREMENTS.read_bytes():
        return
    print(f"installing img2dataset into {ENVIRONMENT}", file=sys.stderr)
    subprocess.run([_python(), "-m", "venv", "--clear", ENVIRONMENT], check=True, stdout=sys.stderr)
    pip = [ENVIRONMENT / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--requirement", REQUIREMENTS], check=True, stdout=sys.stderr)
    shutil.copyfile(REQUIREMENTS, stamp)


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
