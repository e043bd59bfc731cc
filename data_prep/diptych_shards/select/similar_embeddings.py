"""Find all pairs of embeddings with a cosine above a threshold; a cheap bound rules out most of the others.

With P the projection onto the r directions that hold most of the embeddings' length, and q the length of what is left
of each, Cauchy and Schwarz give x . y <= Px . Py + q(x) q(y). So one product of r + 1 instead of 512 numbers rules out
nearly all pairs; the others are multiplied out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from diptych.errors import UserError

Pairs = tuple[np.ndarray, np.ndarray]
"""Positions (i64, i64)."""

ROWS_AT_ONCE = 4_096
_ENERGY = 0.6
"""The share of the squared length that the projection keeps: the bound of a pair unlike each other is then about
0.4 more than the product of what is kept."""
_LEAST_DIRECTIONS = 16
_SAMPLED = 20_000
_ROUNDING = 1e-3
"""The bound is computed in f32 from f32: it is loosened by more than that can be wrong."""
_PAIRS_AT_ONCE = 100_000


def similar_pairs(vectors: np.ndarray, threshold: float, report: Callable[[int], object]) -> Iterator[Pairs]:
    """Positions (i64, i64), the smaller first, of the pairs with a cosine above `threshold`; each once.

    vectors: f32[n, dim] of unit length, perhaps mapped from a file; r + 1 numbers of each row are in memory.
    report: called with the number of rows compared since the last call.
    """
    sketch = _sketch(vectors)
    starts = range(0, len(vectors), ROWS_AT_ONCE)
    for start in starts:
        rows = slice(start, start + ROWS_AT_ONCE)
        ours = np.asarray(vectors[rows])
        for other_start in range(start, len(vectors), ROWS_AT_ONCE):
            others = slice(other_start, other_start + ROWS_AT_ONCE)
            one, other = np.nonzero(sketch[rows] @ sketch[others].T > threshold - _ROUNDING)
            if other_start == start:
                one, other = one[one < other], other[one < other]
            if not len(one):
                continue
            is_similar = cosines(ours, np.asarray(vectors[others]), one, other) > threshold
            if is_similar.any():
                yield one[is_similar] + start, other[is_similar] + other_start
        report(len(ours))


def cosines(ours: np.ndarray, others: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """f64 cosine of each pair of rows of unit length."""
    found = np.empty(len(one))
    for start in range(0, len(one), _PAIRS_AT_ONCE):
        part = slice(start, start + _PAIRS_AT_ONCE)
        found[part] = np.einsum("ij,ij->i", ours[one[part]], others[other[part]], dtype=np.float64)
    return found


def approximate_pairs(vectors: np.ndarray, threshold: float, report: Callable[[int], object]) -> Iterator[Pairs]:
    """Most of the same pairs by faiss, which looks only at neighbouring cells: for many millions of embeddings.

    All vectors are in memory.

    Raises:
        UserError: faiss is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise UserError(
            "faiss is not installed; pip install faiss-cpu, or search exactly (without --approximate)"
        ) from error

    num_cells = max(1, int(4 * np.sqrt(len(vectors))))
    quantizer = faiss.IndexFlatIP(vectors.shape[1])
    index = faiss.IndexIVFFlat(quantizer, vectors.shape[1], num_cells, faiss.METRIC_INNER_PRODUCT)
    sample = np.linspace(0, len(vectors) - 1, min(len(vectors), 64 * num_cells)).astype(np.int64)
    index.cp.min_points_per_centroid = 1
    index.train(np.asarray(vectors[sample]))
    index.nprobe = min(16, num_cells)
    for start in range(0, len(vectors), ROWS_AT_ONCE):
        index.add(np.asarray(vectors[start : start + ROWS_AT_ONCE]))
    for start in range(0, len(vectors), ROWS_AT_ONCE):
        limits, _, neighbours = index.range_search(np.asarray(vectors[start : start + ROWS_AT_ONCE]), threshold)
        one = np.repeat(np.arange(len(limits) - 1), (limits[1:] - limits[:-1]).astype(np.int64)) + start
        yield one[one < neighbours], neighbours[one < neighbours]
        report(len(limits) - 1)


def _sketch(vectors: np.ndarray) -> np.ndarray:
    """f32[n, r + 1]: the projection of each, and the length of the rest."""
    step = max(1, len(vectors) // _SAMPLED)
    sample = np.asarray(vectors[::step], np.float64)
    energies, directions = np.linalg.eigh(sample.T @ sample / max(len(sample), 1))
    kept = np.cumsum(energies[::-1]) / max(energies.sum(), 1e-12)
    num_directions = max(int(np.searchsorted(kept, _ENERGY)) + 1, min(_LEAST_DIRECTIONS, vectors.shape[1]))
    basis = directions[:, ::-1][:, :num_directions].astype(np.float32)
    sketch = np.empty((len(vectors), num_directions + 1), np.float32)
    for start in range(0, len(vectors), ROWS_AT_ONCE):
        rows = np.asarray(vectors[start : start + ROWS_AT_ONCE])
        projected = rows @ basis
        rest = np.maximum((rows**2).sum(1) - (projected**2).sum(1), 0)
        sketch[start : start + len(rows)] = np.column_stack([projected, np.sqrt(rest)])
    return sketch
