"""Install a peer in a virtual environment of its own, from a list of requirements."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
REQUIREMENTS = ROOT / "benchmarks" / "peers"
ENVIRONMENTS = ROOT / ".venv-peers"


def ensure_environment(name: str, python: str = sys.executable, *, sees_ours: bool = False) -> Path:
    """Install `peers/NAME.txt`, unless it is installed already, and return the folder of the environment.

    sees_ours: the environment also has all packages of this one, of which its own take precedence: for peers that use
    the same torch, which takes gigabytes.
    """
    requirements, environment = REQUIREMENTS / f"{name}.txt", ENVIRONMENTS / name
    stamp = environment / "installed-from.txt"
    if stamp.exists() and stamp.read_bytes() == requirements.read_bytes():
        return environment
    print(f"installing {name} into {environment}", file=sys.stderr)
    subprocess.run([python, "-m", "venv", "--clear", environment], check=True, stdout=sys.stderr)
    if sees_ours:
        (packages,) = environment.glob("lib/python3*/site-packages")
        (packages / "zz_ours.pth").write_text("".join(f"{path}\n" for path in sys.path if "site-packages" in path))
    pip = [environment / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--requirement", requirements], check=True, stdout=sys.stderr)
    shutil.copyfile(requirements, stamp)
    return environment
