"""CLIP pretraining. `diptych.load(path)` gives the encoder of a model folder or of a run directory."""

from __future__ import annotations

from typing import Any

_HOME = {"load": "diptych.encoder", "Encoder": "diptych.encoder"}
"""Names that load torch, and so only when they are asked for."""


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'diptych' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOME[name]), name)
