"""Cluster the samples of shards by a model's embeddings of their pictures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diptych.data.shards import ShardIndex
from diptych.evaluation.pictures import Embedded, PictureEncoder, embed
from diptych.evaluation.shard_pictures import indexed_pictures
from diptych.evaluation.similarity import Array, unit_norm

ITERATIONS = 20
SAMPLES_A_CENTRE = 256
"""Samples that each centre is fitted to, at most; all samples are assigned."""


@dataclass(frozen=True)
class Clustered:
    groups: Array
    """i32[samples]: the group of each; groups with neighbouring numbers are alike."""
    cosine: float
    """Mean cosine of a sample and the centre of its group."""
    next_cosine: float
    """Mean cosine of the centres of two groups with neighbouring numbers."""

    @property
    def number(self) -> int:
        return int(self.groups.max()) + 1

    def sizes(self) -> tuple[int, int, int]:
        """Samples of the smallest, the median and the largest group."""
        sizes = np.bincount(self.groups)
        return int(sizes.min()), int(np.median(sizes)), int(sizes.max())


def embedded_shards(encoder: PictureEncoder, index: ShardIndex) -> Embedded:
    """The embeddings of all pictures, f32[pictures, dim] of unit norm; their places are their samples' numbers."""
    embedded = embed(encoder, indexed_pictures(index))
    return Embedded(unit_norm(embedded.embeddings), embedded.kept, embedded.rejected)


def cluster(embeddings: Array, kept: Array, num_samples: int, number: int) -> Clustered:
    """Cluster by spherical k-means (faiss), and number the groups so that neighbours are alike.

    embeddings: f32[kept, dim] of unit norm.
    kept: i64[kept], the samples that they belong to; the others become a group of their own, the last.
    """
    import faiss

    means = faiss.Kmeans(
        embeddings.shape[1], number, niter=ITERATIONS, spherical=True, seed=0, min_points_per_centroid=1,
        max_points_per_centroid=SAMPLES_A_CENTRE,
    )  # fmt: skip
    means.train(embeddings)
    cosines, nearest = means.index.search(embeddings, 1)
    centres = np.asarray(means.centroids)
    tour = tour_of(centres)
    places = np.empty(number, dtype=np.int32)
    places[tour] = np.arange(number, dtype=np.int32)
    groups = np.full(num_samples, number, dtype=np.int32)
    groups[kept] = places[nearest[:, 0]]
    _, numbered = np.unique(groups, return_inverse=True)  # equal pictures can leave centres without any
    in_order = centres[tour]
    next_cosines = (in_order[1:] * in_order[:-1]).sum(axis=1)
    return Clustered(numbered.astype(np.int32), float(cosines.mean()), float(next_cosines.mean()))


def tour_of(centres: Array) -> Array:
    """i64[centres]: an order in which each centre is followed by the most similar one of those that are left.

    It begins with the centre that is least like their mean. f32[centres, dim] of unit norm.
    """
    left = np.ones(len(centres), dtype=bool)
    tour = [int((centres @ centres.mean(axis=0)).argmin())]
    left[tour[0]] = False
    while left.any():
        similar = np.where(left, centres @ centres[tour[-1]], -np.inf)
        tour.append(int(similar.argmax()))
        left[tour[-1]] = False
    return np.array(tour)
