"""Measure association: which of several pictures a cue belongs to (WinoGAViL)."""

from __future__ import annotations

from math import comb

import numpy as np

from diptych.errors import UserError
from diptych.evaluation.data_sets import DataSet
from diptych.evaluation.embedding import identity
from diptych.evaluation.evaluator import Result
from diptych.evaluation.features import Features
from diptych.evaluation.intervals import Measured, as_result, bootstrapped_share
from diptych.evaluation.left_out import by_reason
from diptych.evaluation.pictures import Cue
from diptych.evaluation.similarity import Array, similarities, unit_norm

SMALL, LARGE = 6, 10
"""WinoGAViL has cues with 5 or 6 candidates, and with 10 or 12, which are harder."""


def association(features: Features, data: DataSet) -> Result:
    """Measure the mean Jaccard index of the right pictures of a cue and as many that are nearest to it.

    All cues are measured, and by themselves those with at most 6 and those with at least 10 candidates. A cue is left
    out if one of its candidates cannot be decoded.

    Raises:
        ValueError: no cue has candidates that can all be decoded.
    """
    pictures = data.pictures
    embedded = features.pictures(pictures)
    row_of_picture = {int(place): row for row, place in enumerate(embedded.kept)}
    cues = [cue for cue in pictures.cues if row_of_picture.keys() >= set(cue.candidates)]
    if not cues:
        raise UserError(f"{pictures.location}: no cue has candidates that can all be decoded")
    images = unit_norm(embedded.embeddings)
    texts = unit_norm(features.embed_texts([prompt(cue.text) for cue in cues]))
    scores = np.empty(len(cues))
    for number, cue in enumerate(cues):
        candidates = images[[row_of_picture[place] for place in cue.candidates]]
        (cosines,) = similarities(texts[number : number + 1], candidates)
        scores[number] = jaccard(cosines, np.array(cue.is_right))
    chance = np.array([chance_of(cue) for cue in cues])
    sizes = np.array([len(cue.candidates) for cue in cues])
    parts = {"jaccard": sizes > 0, "jaccard_5_6": sizes <= SMALL, "jaccard_10_12": sizes >= LARGE}
    return {
        "pictures": len(embedded.kept),
        "cues": len(cues),
        "rejected": embedded.rejected,
        "refused": by_reason(pictures.refused),
        **as_result({name: mean(scores[part]) for name, part in parts.items()}),
        "chance": {name: float(chance[part].mean()) if part.any() else None for name, part in parts.items()},
        "answers": {
            "of": identity(pictures, embedded, [f"{cue.text} {cue.candidates} {cue.is_right}" for cue in cues]),
            "jaccard": scores.tolist(),
            "parts": {name: np.flatnonzero(part).tolist() for name, part in parts.items()},
        },
    }


def prompt(cue: str) -> str:
    """`A bald`, `An eagle`: the prompt of WinoGAViL's authors and of DataComp."""
    cue = cue.lower()
    return f"{'An' if cue[0] in 'aeiou' else 'A'} {cue}"


def jaccard(cosines: Array, is_right: Array) -> float:
    """The Jaccard index of the right candidates, of which there are k, and the k nearest ones.

    Ties and NaN count against the right candidates.
    """
    worst = np.where(is_right, -np.inf, np.inf)
    order = np.lexsort((is_right, -np.where(np.isnan(cosines), worst, cosines)))
    k = int(np.count_nonzero(is_right))
    hits = int(np.count_nonzero(is_right[order[:k]]))
    return hits / (2 * k - hits)


def chance_of(cue: Cue) -> float:
    """The mean Jaccard index of k candidates that are drawn, where k are right."""
    n, k = len(cue.candidates), sum(cue.is_right)
    return sum(comb(k, hits) * comb(n - k, k - hits) / comb(n, k) * hits / (2 * k - hits) for hits in range(k + 1))


def mean(scores: Array) -> Measured | None:
    """The mean of f64[cues], resampled by cue; None if there is no cue."""
    return bootstrapped_share(lambda counts: counts @ scores / len(scores), len(scores)) if len(scores) else None
