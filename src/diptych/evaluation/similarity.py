"""Similarities that compare fairly: equal embeddings get equal numbers, and a tie can be told from a win."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

MOST_NUMBERS = 16_000_000
"""A block of similarities holds at most this many (64 MB), however many pictures and texts there are."""


def unit_norm(embeddings: Any) -> Array:
    """f32[n dim] with rows of length 1; a row of zeros stays one. Takes arrays and CPU tensors."""
    rows = np.asarray(embeddings, dtype=np.float32)
    length = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    return (rows / np.where(length == 0, 1.0, length)).astype(np.float32)


def similarities(queries: Array, gallery: Array) -> Array:
    """f32[queries gallery] of unit-norm embeddings: the cosine, rounded once.

    Summed in float64, because float32 products of equal rows differ by their place in the matrix (in 86 of
    378 shapes tried with OpenBLAS, in 0 this way): a model with constant output would win some of its ties.
    """
    products: np.ndarray = queries.astype(np.float64) @ gallery.astype(np.float64).T
    return products.astype(np.float32)


def blocks(num_queries: int, num_columns: int) -> Iterator[slice]:
    """Slices of the queries whose similarities to all columns fit into one block."""
    rows = max(1, MOST_NUMBERS // max(1, num_columns))
    for start in range(0, num_queries, rows):
        yield slice(start, min(start + rows, num_queries))
