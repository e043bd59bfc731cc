"""Cluster the samples of shards by a model's embeddings of their pictures.

The centres are fitted to embeddings of some samples, all in memory; then the others are embedded and assigned part by
part, so that each only takes the number of its group.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from diptych.data.groups import numbered
from diptych.data.shards import ShardIndex
from diptych.errors import UserError
from diptych.evaluation.embedding import Embedded, PictureEncoder, embed_part
from diptych.evaluation.shard_pictures import pictures_at
from diptych.evaluation.similarity import Array, unit_norm
from diptych.terminal import counted

ITERATIONS = 20
SAMPLES_A_CENTRE = 256
"""Samples that each centre is fitted to, at most; all samples are assigned."""
SAMPLES_OF_A_PART = 2**14


@dataclass(frozen=True)
class Clustered:
    groups: Array
    """i32[samples]: the group of each; groups with neighbouring numbers are alike."""
    undecodable: int
    """Samples without a picture that can be decoded; they are a group of their own, the last."""
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


def cluster(encoder: PictureEncoder, index: ShardIndex, number: int) -> Clustered:
    """Cluster by spherical k-means (faiss), and number the groups so that neighbours are alike.

    Raises:
        UserError: fewer pictures than groups can be decoded among those that the centres are fitted to.
    """
    import faiss

    total = index.total_samples
    is_drawn = drawn_samples(total, number * SAMPLES_A_CENTRE)
    fitted = _joined(_embedded(encoder, index, is_drawn), int(is_drawn.sum()))
    if len(fitted.kept) < number:
        name, reason = next(iter(fitted.rejected.items()))
        raise UserError(
            f"only {counted(len(fitted.kept), 'picture')} of {is_drawn.sum():,} can be decoded, too few for {number:,} "
            f"groups; {name}: {reason}"
        )
    means = faiss.Kmeans(
        fitted.embeddings.shape[1], number, niter=ITERATIONS, spherical=True, seed=0, min_points_per_centroid=1,
        max_points_per_centroid=SAMPLES_A_CENTRE,
    )  # fmt: skip
    means.train(fitted.embeddings)
    centres = np.asarray(means.centroids)
    tour = tour_of(centres)
    places = np.empty(number, dtype=np.int32)
    places[tour] = np.arange(number, dtype=np.int32)

    groups = np.full(total, number, dtype=np.int32)
    sum_of_cosines = 0.0

    def assign(embedded: Embedded) -> None:
        nonlocal sum_of_cosines
        cosines, nearest = means.index.search(embedded.embeddings, 1)
        groups[embedded.kept] = places[nearest[:, 0]]
        sum_of_cosines += float(cosines.sum(dtype=np.float64))

    assign(fitted)
    del fitted  # its embeddings take most of the memory
    for part in _embedded(encoder, index, ~is_drawn):
        if len(part.kept):
            assign(part)
    undecodable = int((groups == number).sum())
    in_order = centres[tour]
    next_cosines = (in_order[1:] * in_order[:-1]).sum(axis=1)
    # Equal pictures can leave centres without any.
    return Clustered(numbered(groups), undecodable, sum_of_cosines / (total - undecodable), float(next_cosines.mean()))


def drawn_samples(total: int, most: int) -> Array:
    """bool[samples]: whether each is drawn, one of each of `most` equal stretches; all if there are no more.

    They are always the same ones.
    """
    edges = np.arange(min(total, most) + 1) * total // min(total, most)
    is_drawn = np.zeros(total, dtype=bool)
    is_drawn[np.random.default_rng(0).integers(edges[:-1], edges[1:])] = True
    return is_drawn


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


def _embedded(encoder: PictureEncoder, index: ShardIndex, is_wanted: Array) -> Iterator[Embedded]:
    """Yield the embeddings of some samples in parts, f32[kept, dim] of unit norm; `kept` has the samples' numbers.

    is_wanted: bool[samples].
    """
    for first in tqdm(range(0, len(is_wanted), SAMPLES_OF_A_PART), desc="parts", disable=None, leave=False):
        samples = first + np.flatnonzero(is_wanted[first : first + SAMPLES_OF_A_PART])
        if len(samples):
            part = embed_part(encoder, pictures_at(index, samples), range(len(samples)))
            yield Embedded(unit_norm(part.embeddings), samples[part.kept], part.rejected)


def _joined(parts: Iterable[Embedded], most: int) -> Embedded:
    """All parts as one, without a second copy of the embeddings; `most`: how many there can be."""
    embeddings, kept, rejected = np.empty((0, 0), dtype=np.float32), [np.empty(0, dtype=np.int64)], {}
    filled = 0
    for part in parts:
        rejected.update(part.rejected)
        if len(part.kept):
            if not filled:
                embeddings = np.empty((most, part.embeddings.shape[1]), dtype=np.float32)
            embeddings[filled : filled + len(part.kept)] = part.embeddings
            kept.append(part.kept)
            filled += len(part.kept)
    return Embedded(embeddings[:filled], np.concatenate(kept), rejected)
