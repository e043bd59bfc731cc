"""Compute similarities exactly enough that equal embeddings get equal numbers, so that ties are seen as ties."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

MOST_NUMBERS = 2_000_000
"""Largest number of similarities in a block, for any number of pictures and texts. A block takes up to 100 bytes for
each, while it is ranked; smaller blocks take longer where a gallery has 25,000 entries."""


def unit_norm(embeddings: Any) -> Array:
    """Scale the rows of an array or CPU tensor to length 1, as f32[n dim]; a row of zeros stays zero."""
    rows = np.asarray(embeddings, dtype=np.float32)
    length = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    return (rows / np.where(length == 0, 1.0, length)).astype(np.float32)


def similarities(queries: Array, gallery: Array) -> Array:
    """The cosines f32[queries gallery] of unit-norm embeddings, rounded once.

    They are summed in float64: in float32 the products of equal rows depend on their place in the matrix (in 86 of 378
    shapes tried with OpenBLAS, and in none in float64), and a model with constant output would win some of its ties.
    """
    products: np.ndarray = queries.astype(np.float64) @ gallery.astype(np.float64).T
    return products.astype(np.float32)


def blocks(num_queries: int, num_columns: int) -> Iterator[slice]:
    """Yield slices of the queries whose similarities to all columns fit into one block."""
    rows = max(1, MOST_NUMBERS // max(1, num_columns))
    for start in range(0, num_queries, rows):
        yield slice(start, min(start + rows, num_queries))


def softmax(logits: Array) -> Array:
    """The softmax of each row, as probabilities over its columns."""
    weights: Array = np.exp(logits - logits.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return weights
