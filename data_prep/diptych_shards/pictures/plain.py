"""What the readers of plain files tell: those that hold one opaque picture in colour, whole and in order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class PlainHeader:
    """Of a plain file, before its pixels are decoded."""

    width: int
    height: int
    pixels: tuple[int, int]
    """Where they begin in the file, and how many bytes they take there."""
    exif: bytes | None = None
    """As in a TIFF file, from its byte order on."""
    profile: bytes = b""
    """ICC; empty without one."""


class PlainFormat(Protocol):
    """A module that reads one format."""

    NAME: str

    def read_header(self, data: bytes, /) -> PlainHeader | None:
        """None unless the file is plain."""

    def decode(self, data: bytes, header: PlainHeader, /) -> np.ndarray | None:
        """u8[height, width, 3], RGB; None if the decoder refuses it."""
