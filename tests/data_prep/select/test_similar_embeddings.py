"""Embeddings: the cheap bound never loses a pair that multiplying all out finds."""

import numpy as np
import pytest

from diptych_shards.select import similar_embeddings
from diptych_shards.select.similar_embeddings import approximate_pairs, similar_pairs


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def crowd(kind, total=600, dim=48):
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(total, dim))
    if kind == "decaying":  # as embeddings are: a few directions hold most, and all lean to one side
        vectors = vectors * 0.9 ** np.arange(dim) + np.eye(dim)[0]
    if kind == "flat":
        vectors[:, 5:] = 0
    for place in range(0, total // 2, 2):  # around the threshold, on both sides
        vectors[place + 1] = vectors[place] + rng.normal(size=dim) * np.abs(vectors[place]).mean() * rng.uniform(0, 0.6)
    vectors[-3:] = vectors[0]
    return unit(vectors)


def brute_force(vectors, threshold):
    exact = vectors.astype(np.float64)
    return set(map(tuple, np.argwhere(np.triu(exact @ exact.T > threshold, 1)).tolist()))


def found(search, vectors, threshold):
    reported = []
    pairs = [pair for part in search(vectors, threshold, reported.append) for pair in np.stack(part, 1).tolist()]
    assert sum(reported) == len(vectors)
    assert len(pairs) == len(set(map(tuple, pairs)))
    return set(map(tuple, pairs))


@pytest.mark.parametrize("kind", ["random", "decaying", "flat"])
@pytest.mark.parametrize("rows_at_once", [64, 4096])
def test_all_similar_pairs_are_found_each_once_and_no_others(kind, rows_at_once, monkeypatch):
    monkeypatch.setattr(similar_embeddings, "ROWS_AT_ONCE", rows_at_once)
    vectors = crowd(kind)
    expected = brute_force(vectors, 0.95)
    assert len(expected) > 100
    assert found(similar_pairs, vectors, 0.95) == expected


@pytest.mark.parametrize("total", [1, 2, 3])
def test_few_vectors_are_compared_too(total):
    assert found(similar_pairs, crowd("random")[-total:], 0.95) == brute_force(crowd("random")[-total:], 0.95)


def test_faiss_finds_most_of_them_and_no_others():
    pytest.importorskip("faiss", reason="an extra; pip install faiss-cpu")
    vectors = crowd("decaying")
    expected, some = brute_force(vectors, 0.95), found(approximate_pairs, vectors, 0.95)
    assert len(some & expected) > 0.9 * len(expected)
    # faiss adds up in f32: it may differ within that of the threshold.
    assert some <= brute_force(vectors, 0.95 - 1e-5)
