"""CLIP pretraining. `diptych.load(path)` loads the encoder of a model folder or of a run directory."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

if sys.platform == "win32":
    raise SystemExit("Diptych runs on Linux and macOS; on Windows, install and start it in WSL (`wsl --install`)")

if TYPE_CHECKING:
    from diptych.encoder import Encoder, load

__version__ = "0.1.0"

__all__ = ["Encoder", "__version__", "load"]


def __getattr__(name: str) -> Any:
    """Import the encoder, and torch with it, only when it is first used."""
    if name not in __all__:
        raise AttributeError(f"module 'diptych' has no attribute {name!r}")
    try:
        return getattr(importlib.import_module("diptych.encoder"), name)
    except ModuleNotFoundError as error:
        from diptych.extras import way_out

        line = way_out(error)
        if line is None:
            raise
        raise ModuleNotFoundError(f"diptych.{name}: {line}", name=error.name) from error


def __dir__() -> list[str]:
    return __all__
