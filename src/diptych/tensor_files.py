"""Read and write safetensors files, with the file modes and errors of ordinary files."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from diptych.errors import UserError


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file.

    Raises:
        OSError: it cannot be written, for example because the disk is full.
    """
    # safetensors creates files with mode 0600; a file that we create first has the mode that umask and folder give.
    path.touch()
    mode = path.stat().st_mode
    try:
        safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})
    except safetensors.SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        raise OSError(int(number.group(1)) if number else errno.EIO, str(error), str(path)) from error
    path.chmod(mode)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, in memory of their own.

    Raises:
        ValueError: it cannot be read, or is not a safetensors file.
    """

    def tensor(name: str) -> Tensor:
        # Opened for each tensor: the library maps the file, and what was read of it stays in memory until it is closed.
        with safetensors.safe_open(path, "pt") as file:
            mapped: Tensor = file.get_tensor(name)
            return mapped.clone()

    try:
        with safetensors.safe_open(path, "pt") as file:
            names = list(file.keys())
        return {name: tensor(name) for name in names}
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read as safetensors: {error}") from error
