"""Measure compositional understanding: two pictures and two captions of the same words, to be matched (Winoground)."""

from __future__ import annotations

import numpy as np

from diptych.errors import UserError
from diptych.evaluation.data_sets import DataSet
from diptych.evaluation.embedding import identity
from diptych.evaluation.evaluator import Result
from diptych.evaluation.features import Features
from diptych.evaluation.intervals import as_result, share_of
from diptych.evaluation.left_out import by_reason
from diptych.evaluation.similarity import Array, unit_norm

CHANCE = {"text_score": 1 / 4, "image_score": 1 / 4, "group_score": 1 / 6}


def compositional(features: Features, data: DataSet) -> Result:
    """Measure the text, image and group score of examples of two pictures and two captions.

    An example is left out if one of its pictures cannot be decoded.

    Raises:
        ValueError: no example has two pictures that can be decoded.
    """
    pictures = data.pictures
    embedded = features.pictures(pictures)
    row_of_picture = {int(place): row for row, place in enumerate(embedded.kept)}
    examples = [each for each in range(len(pictures) // 2) if {2 * each, 2 * each + 1} <= row_of_picture.keys()]
    if not examples:
        raise UserError(f"{pictures.location}: no example has two pictures that can be decoded")
    rows = [row_of_picture[place] for each in examples for place in (2 * each, 2 * each + 1)]
    captions = [pictures.captions[place][0] for each in examples for place in (2 * each, 2 * each + 1)]
    images = unit_norm(embedded.embeddings[rows]).reshape(len(examples), 2, -1)
    texts = unit_norm(features.embed_texts(captions)).reshape(len(examples), 2, -1)
    # In float64, rounded once, as all similarities: equal embeddings must tie.
    cosines = (images.astype(np.float64) @ texts.astype(np.float64).transpose(0, 2, 1)).astype(np.float32)
    right = right_answers(cosines)
    return {
        "pictures": len(rows),
        "examples": len(examples),
        "rejected": embedded.rejected,
        "refused": by_reason(pictures.refused),
        **as_result({name: share_of(each) for name, each in right.items()}),
        "chance": CHANCE,
        "answers": {
            "of": identity(pictures, embedded, captions),
            "right": {name: each.astype(int).tolist() for name, each in right.items()},
        },
    }


def right_answers(cosines: Array) -> dict[str, Array]:
    """bool[examples]: whether pictures find their captions, captions their pictures, and both (Winoground).

    cosines: f32[examples 2 2], of pictures (rows) and captions (columns). A tie is an error.
    """
    own = cosines[:, [0, 1], [0, 1]]
    text: Array = np.all(own > cosines[:, [0, 1], [1, 0]], axis=1)
    image: Array = np.all(own > cosines[:, [1, 0], [0, 1]], axis=1)
    return {"text_score": text, "image_score": image, "group_score": text & image}
