"""A plain file: it holds one opaque picture in colour, whole and in order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Plain:
    """What its header says, and how to come to its pixels."""

    format: str
    width: int
    height: int
    decode: Callable[[], np.ndarray | None]
    """u8[height, width, 3], RGB; None if the decoder refuses it."""
    exif: bytes | None = None
    """As in a TIFF file, from its byte order on."""
    profile: bytes = b""
    """ICC; empty without one."""
