"""Measure retrieval: whether a picture finds its captions among all captions, and a caption its pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from diptych.data.captions import clean_caption
from diptych.evaluation.data_sets import DataSet
from diptych.evaluation.evaluator import Result
from diptych.evaluation.features import Features
from diptych.evaluation.intervals import as_result, grouped_share, share_of
from diptych.evaluation.left_out import by_reason
from diptych.evaluation.pictures import Pictures, subset
from diptych.evaluation.similarity import Array, blocks, similarities, unit_norm
from diptych.evaluation.zero_shot import thumbnail

RECALL_AT = (1, 5, 10)
EXAMPLES = 8
NEAREST = 5


@dataclass(frozen=True)
class Positives:
    """The right answers of each query i in the gallery: `columns[starts[i]:starts[i + 1]]`, at least one each."""

    columns: Array
    starts: Array

    def of(self, query: int) -> Array:
        return self.columns[self.starts[query] : self.starts[query + 1]]


@dataclass(frozen=True)
class Pairing:
    """Which pictures have which captions; identical captions are one text.

    Two pictures with the same caption are both right answers to it, since the text cannot distinguish them. Identical
    means equal after the tokenizer's cleaning and lower-casing.
    """

    texts: tuple[str, ...]
    weights: Array
    """How many captions are this text."""
    text_of_caption: Array
    picture_of_caption: Array
    """i64[captions]: the numbers of each caption's text and picture, in the order of the pictures."""
    texts_of_picture: Positives
    pictures_of_text: Positives

    def group_of_caption(self) -> Array:
        """i64[captions]: one number for captions of one picture, for equal ones, and so on from one to the next.

        Answers to captions of a group are not independent: they are about one picture, or are one answer.
        """
        group = np.arange(self.picture_of_caption.max() + 1)
        while True:
            of_text = np.full(len(self.texts), len(group))
            np.minimum.at(of_text, self.text_of_caption, group[self.picture_of_caption])
            smaller = group.copy()
            np.minimum.at(smaller, self.picture_of_caption, of_text[self.text_of_caption])
            if np.array_equal(smaller, group):
                return group[self.picture_of_caption]
            group = smaller


def retrieval(features: Features, data: DataSet) -> Result:
    """Measure recall at 1, 5 and 10 in both directions, with chance, and find the captions nearest to some pictures.

    Raises:
        ValueError: no picture can be decoded.
    """
    pictures = data.pictures
    embedded = features.pictures(pictures)
    kept = subset(pictures, embedded.kept)
    pairing = pair(kept.captions)
    images = unit_norm(embedded.embeddings)
    texts = unit_norm(features.embed_texts(pairing.texts))
    one_each = np.ones(len(kept), dtype=np.int64)
    # Each distinct text counts once; otherwise copies of one text could fill the first five places.
    to_text = ranks(images, texts, pairing.texts_of_picture, np.ones(len(texts), dtype=np.int64))
    to_image = ranks(texts, images, pairing.pictures_of_text, one_each)

    num_captions = int(pairing.weights.sum())
    group = pairing.group_of_caption()
    right_texts = np.diff(pairing.texts_of_picture.starts)
    right_images = np.diff(pairing.pictures_of_text.starts)
    measured, chance = {}, {}
    for k in RECALL_AT:
        measured[f"image_to_text_r{k}"] = share_of(to_text < k)
        found = to_image[pairing.text_of_caption] < k
        measured[f"text_to_image_r{k}"] = grouped_share(found, group)
        chance[f"image_to_text_r{k}"] = float(chance_at(k, len(texts), right_texts).mean())
        chance[f"text_to_image_r{k}"] = float(
            np.average(chance_at(k, len(kept), right_images), weights=pairing.weights)
        )
    return {
        "pictures": len(kept),
        "captions": num_captions,
        "distinct_captions": len(pairing.texts),
        "rejected": embedded.rejected,
        "refused": by_reason(pictures.refused),
        **as_result(measured),
        "chance": chance,
        "ranks": {
            "pictures": list(kept.names),
            "image_to_text": to_text.tolist(),
            "picture_of_caption": pairing.picture_of_caption.tolist(),
            "group_of_caption": group.tolist(),
            "text_to_image": to_image[pairing.text_of_caption].tolist(),
        },
        "examples": _examples(kept, images, texts, pairing),
    }


def pair(captions: Sequence[Sequence[str]]) -> Pairing:
    """The pairing for pictures with the given captions."""
    numbers: dict[str, int] = {}
    texts: list[str] = []
    counts: list[int] = []
    rows, columns = [], []
    for picture, own in enumerate(captions):
        for caption in own:
            cleaned = clean_caption(caption)
            number = numbers.setdefault(cleaned.lower(), len(numbers))
            if number == len(texts):
                texts.append(cleaned)
                counts.append(0)
            counts[number] += 1
            rows.append(picture)
            columns.append(number)
    links = np.unique(np.stack([rows, columns], axis=1), axis=0)
    backwards = links[np.lexsort((links[:, 0], links[:, 1]))]
    return Pairing(
        tuple(texts),
        np.array(counts),
        np.array(columns),
        np.array(rows),
        Positives(links[:, 1], np.searchsorted(links[:, 0], np.arange(len(captions) + 1))),
        Positives(backwards[:, 0], np.searchsorted(backwards[:, 1], np.arange(len(texts) + 1))),
    )


def ranks(queries: Array, gallery: Array, positives: Positives, weights: Array) -> Array:
    """i64[queries]: the total weight of wrong answers that are at least as near as the best right one.

    With 0 the right answer comes first. Works in blocks of queries; ties and NaN count against the right answer.
    """
    found = []
    for rows in blocks(len(queries), len(gallery)):
        cosines = similarities(queries[rows], gallery)
        starts = positives.starts[rows.start : rows.stop + 1]
        columns = positives.columns[starts[0] : starts[-1]]
        starts = starts - starts[0]
        query = np.repeat(np.arange(len(cosines)), np.diff(starts))
        best = np.maximum.reduceat(cosines[query, columns], starts[:-1])
        as_near = ~(cosines < best[:, None])
        as_near[query, columns] = False
        found.append(as_near @ weights)
    return np.concatenate(found)


def chance_at(k: int, gallery: int, right: Array) -> Array:
    """f64[queries]: the probability that k random entries of the gallery contain one of `right` answers."""
    missed = np.ones(len(right))
    for drawn in range(min(k, gallery)):
        missed *= np.maximum(gallery - right - drawn, 0) / (gallery - drawn)
    return 1 - missed


def _nearest_own(cosines: Array, pairing: Pairing, place: int) -> dict[str, Any]:
    """The nearest of a picture's own captions, its similarity, and its rank among all captions, from 1."""
    own = pairing.texts_of_picture.of(place)
    best = own[np.argmax(cosines[own])]
    rank = 1 + int(np.count_nonzero(cosines > cosines[best]))
    return {"caption": pairing.texts[best], "similarity": float(cosines[best]), "rank": rank}


def _examples(pictures: Pictures, embeddings: Array, texts: Array, pairing: Pairing) -> list[dict[str, Any]]:
    chosen = np.unique(np.linspace(0, len(pictures) - 1, EXAMPLES).astype(np.int64))
    cosines = similarities(embeddings[chosen], texts)
    nearest = np.argsort(-cosines, axis=1, kind="stable")[:, :NEAREST]
    return [
        {
            "name": pictures.names[place],
            "picture": thumbnail(pictures.read(int(place))),
            "captions": list(pictures.captions[place]),
            "own": _nearest_own(row, pairing, place),
            "nearest": [
                {
                    "caption": pairing.texts[text],
                    "similarity": float(row[text]),
                    "is_right": bool(text in pairing.texts_of_picture.of(place)),
                }
                for text in order
            ],
        }
        for place, row, order in zip(chosen, cosines, nearest, strict=True)
    ]
