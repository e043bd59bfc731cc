"""Functions compiled to machine code, once per machine where its cache can be written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba


def compiled(function: Callable) -> Any:
    """The function as Numba compiles it; integers wrap around, floats are computed in the order written."""
    try:
        return numba.njit(cache=True)(function)
    except RuntimeError:  # neither beside the source nor in the home folder can a cache be written
        return numba.njit(function)
