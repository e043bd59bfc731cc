"""Which pictures are the same, and which of them are left out.

Positions number all pictures: first those of evaluation sets, then the samples in the order of their shards. They are
taken in order of preference, evaluation pictures first; a sample is left out if it is like one that stayed. So what is
left out is like a sample that stays, never only like another that is left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diptych_shards.select.near_hashes import near_pairs

SAME_PIXELS = "same_pixels"
LOOKS_THE_SAME = "looks_the_same"
SIMILAR_EMBEDDING = "similar_embedding"
IN_EVALUATION = "in_evaluation"
REASONS = ("", SAME_PIXELS, LOOKS_THE_SAME, SIMILAR_EMBEDDING, IN_EVALUATION)
"""The place of a reason is its code in `Decision`."""
MEANINGS = {
    SAME_PIXELS: "the same pixels as a sample that stays",
    LOOKS_THE_SAME: "looks the same as a sample that stays, seen small: as if recoded or resized",
    SIMILAR_EMBEDDING: "its embedding nearly agrees with that of a sample that stays",
    IN_EVALUATION: "like a picture of an evaluation set",
}

NOTHING = -1
MOST_DIFFERENCE = 32
"""The most, of 255, that thumbnails of one picture may differ in any colour of any pixel."""
MEAN_DIFFERENCE = 6
"""The most that they may differ on average: the root of the mean square.

Measured on 16 x 16 pixels: photographs and drawings that are recoded (JPEG of quality 50 and more) or at half the size
stay below 17 and 3, both at once below 34 and 6. Drawings of other things or in other colours whose hashes agree differ
by at least 34 and 3.5 (another tone of skin); nearly all by more than 47 and 7.
"""

_NUMBERS_PER_SAMPLED = 48
_FEW = 32


@dataclass(frozen=True)
class Decision:
    """What is decided about every sample."""

    codes: np.ndarray
    """u8: place in REASONS."""
    like: np.ndarray
    """i64: position of the picture that it duplicates; NOTHING if it is kept."""


class LookAlikes:
    """Pictures whose perceptual hashes are near that of another one; their thumbnails decide."""

    def __init__(self, positions: np.ndarray, hashes: np.ndarray, max_distance: int):
        """hashes: u64, one for each position. max_distance: how many bits of two hashes of one picture may differ."""
        distinct, groups, sizes = np.unique(hashes, return_inverse=True, return_counts=True)
        pairs = [
            np.zeros((2, 0), np.int32),
            *(np.stack(pair).astype(np.int32) for pair in near_pairs(distinct, max_distance)),
        ]
        one, other = np.concatenate(pairs, axis=1)
        is_near = sizes > 1
        is_near[one] = is_near[other] = True
        have = is_near[groups]
        self.positions, self.groups = positions[have], groups[have]
        """Pictures of equal hashes are one group."""
        itself = np.arange(len(distinct), dtype=np.int32)
        self.starts, self.near = _neighbours(len(distinct), np.append(one, itself), np.append(other, itself))
        """The groups near group g, itself among them: near[starts[g] : starts[g + 1]]."""


class Duplicates:
    """Gathers which pictures are alike, then decides which samples stay."""

    def __init__(self, num_evaluation: int, num_samples: int, preference: np.ndarray | None = None):
        """preference: f64 for each sample; the highest stays, and the first of equally high ones. NaN is the lowest."""
        total = num_evaluation + num_samples
        position = np.int32 if total < 2**31 else np.int64
        samples = np.arange(num_samples)
        if preference is not None:
            samples = np.argsort(-np.nan_to_num(preference, nan=-np.inf), kind="stable")
        self._num_evaluation = num_evaluation
        self._order = np.concatenate([np.arange(num_evaluation), samples + num_evaluation]).astype(position)
        self._rank = np.empty(total, position)
        self._rank[self._order] = np.arange(total)
        self._first = np.arange(total, dtype=position)
        self._pairs = [np.zeros((2, 0), position)]

    def add_equal(self, positions: np.ndarray, classes: np.ndarray) -> None:
        """Add pictures, each with a class: one class has the same pixels. Call this once, before other methods."""
        order = np.lexsort([self._rank[positions], classes])
        positions, classes = positions[order], classes[order]
        starts = np.flatnonzero(np.diff(classes, prepend=classes[:1] - 1))
        sizes = np.diff(np.append(starts, len(positions)))
        self._first[positions] = np.repeat(positions[starts], sizes)

    @property
    def is_first(self) -> np.ndarray:
        """Whether each picture is the preferred one of those with the same pixels, as bool. The others follow it."""
        is_first: np.ndarray = self._first == np.arange(len(self._first))
        return is_first

    def add_pairs(self, one: np.ndarray, other: np.ndarray) -> None:
        """Add pairs of pictures, by position, whose embeddings agree."""
        pairs = np.stack([self._first[one], self._first[other]])
        differ = (pairs[0] != pairs[1]) & (pairs >= self._num_evaluation).any(axis=0)
        self._pairs.append(np.unique(np.sort(pairs[:, differ], axis=0), axis=1))

    def decide(self, looks: LookAlikes | None = None, thumbnails: np.ndarray | None = None) -> Decision:
        """Decide what stays. thumbnails: u8[n, numbers], one for each of the n pictures of `looks`."""
        if looks is None or thumbnails is None:
            looks = LookAlikes(np.zeros(0, np.int64), np.zeros(0, np.uint64), 0)
            thumbnails = np.zeros((0, 0), np.uint8)
        total = len(self._first)
        starts, others = _neighbours(total, *np.concatenate(self._pairs, axis=1))
        place = np.full(total, NOTHING, self._order.dtype)
        place[looks.positions] = np.arange(len(looks.positions))
        is_met = self.is_first & ((place != NOTHING) | (starts[1:] > starts[:-1]))
        like, codes = np.full(total, NOTHING, np.int64), np.zeros(total, np.uint8)
        stayed = _Stayed(looks, thumbnails)
        for picture in self._order[is_met[self._order]].tolist():
            own = int(place[picture])
            if picture >= self._num_evaluation:
                best = NOTHING if own == NOTHING else stayed.first_like(own, self._rank)
                codes[picture] = _LOOKS_THE_SAME
                for other in others[starts[picture] : starts[picture + 1]].tolist():
                    is_free = like[other] == NOTHING and self._rank[other] < self._rank[picture]
                    if is_free and (best == NOTHING or self._rank[other] < self._rank[best]):
                        best, codes[picture] = other, _SIMILAR_EMBEDDING
                like[picture] = best
            if own != NOTHING and like[picture] == NOTHING:
                stayed.add(own)
        codes[like == NOTHING] = 0
        return self._of_all(like, codes)

    def _of_all(self, like: np.ndarray, codes: np.ndarray) -> Decision:
        """Extend the decision from the pictures that are first to all samples."""
        follows = ~self.is_first & (like[self._first] == NOTHING)
        codes, like = codes[self._first], like[self._first]
        codes[follows], like[follows] = _SAME_PIXELS, self._first[follows]
        codes[(like != NOTHING) & (like < self._num_evaluation)] = REASONS.index(IN_EVALUATION)
        return Decision(codes[self._num_evaluation :], like[self._num_evaluation :])


_SAME_PIXELS, _LOOKS_THE_SAME, _SIMILAR_EMBEDDING = (
    REASONS.index(reason) for reason in (SAME_PIXELS, LOOKS_THE_SAME, SIMILAR_EMBEDDING)
)


class _Stayed:
    """The pictures of `looks` that stayed so far."""

    def __init__(self, looks: LookAlikes, thumbnails: np.ndarray):
        """thumbnails: u8[n, numbers], one for each of the n pictures of `looks`."""
        self._looks = looks
        self._thumbnails = thumbnails
        self._few_numbers = np.ascontiguousarray(thumbnails[:, ::_NUMBERS_PER_SAMPLED])
        """These rule out most of a crowd of pictures whose hashes agree."""
        self._of_group: list[list[int]] = [[] for _ in looks.starts[1:]]

    def add(self, own: int) -> None:
        """own: place in `looks`."""
        self._of_group[self._looks.groups[own]].append(own)

    def first_like(self, own: int, rank: np.ndarray) -> int:
        """The position of the preferred picture that looks the same; NOTHING if there is none."""
        looks, group = self._looks, self._looks.groups[own]
        groups = looks.near[looks.starts[group] : looks.starts[group + 1]].tolist()
        places = np.array([each for near in groups for each in self._of_group[near]], np.int64)
        if len(places) > _FEW:
            differences = np.abs(self._few_numbers[places].astype(np.int16) - self._few_numbers[own])
            places = places[differences.max(axis=1) <= MOST_DIFFERENCE]
        places = places[np.argsort(rank[looks.positions[places]])]
        for start in range(0, len(places), _FEW):
            some = places[start : start + _FEW]
            is_like = look_the_same(self._thumbnails[own], self._thumbnails[some])
            if is_like.any():
                return int(looks.positions[some[is_like.argmax()]])
        return NOTHING


def _neighbours(total: int, one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`starts`, i64[total + 1], and `others`: n is paired, on either side, with others[starts[n] : starts[n + 1]]."""
    from_, to = np.append(one, other), np.append(other, one)
    starts = np.concatenate([[0], np.cumsum(np.bincount(from_, minlength=total))])
    return starts, to[np.argsort(from_, kind="stable")]


def look_the_same(one: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Whether each of these thumbnails, u8[n numbers], shows the same as the one, or as that in its row; as bool."""
    differences = np.abs(others.astype(np.int32) - one)
    is_like: np.ndarray = differences.max(axis=1) <= MOST_DIFFERENCE
    is_like &= (differences**2).sum(axis=1) <= MEAN_DIFFERENCE**2 * others.shape[1]
    return is_like


def repeated(prefixes: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """The positions whose prefix occurs more than once, in order."""
    found, place, times = np.unique(prefixes, return_inverse=True, return_counts=True)
    return positions[times[place] > 1]


def classes(digests: np.ndarray) -> np.ndarray:
    """A class for each row of u64[n, 4], as i64; equal for equal rows, and only for them."""
    order = np.lexsort(digests.T)
    changes = (digests[order[1:]] != digests[order[:-1]]).any(axis=1)
    found = np.empty(len(digests), np.int64)
    found[order] = np.cumsum(np.append(np.zeros(min(len(digests), 1), bool), changes))
    return found
