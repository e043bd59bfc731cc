"""Measure what a model gains from evaluation pictures that it was trained on (paper, section 5)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from diptych.evaluation.evaluator import Result
from diptych.evaluation.intervals import CONFIDENCE, share_of
from diptych.evaluation.pictures import Pictures
from diptych.evaluation.similarity import Array
from diptych.evaluation.training_data import Seen, TrainingData
from diptych.evaluation.zero_shot import thumbnail

MOST_PAIRS = 6
_RIGHT: dict[str, tuple[str, Callable[[Result], Array]]] = {
    "zero_shot": ("top1", lambda result: np.array(result["ranks"]) == 0),
    "retrieval": ("image_to_text_r1", lambda result: np.array(result["ranks"]["image_to_text"]) == 0),
}
"""Evaluator → the metric, and what gives bool[pictures] from a result."""


def overlap(evaluator: str, result: Result, seen: Seen) -> dict[str, Any] | None:
    """The accuracy on all pictures, on the clean ones, and on those that were seen in training.

    As in the paper, the accuracy on clean pictures is the null hypothesis of a one-tailed binomial test of the others,
    whose share has a Clopper-Pearson interval. The difference is that of all pictures minus that of the clean ones,
    and its interval follows from that of the share. The shares of all and of the clean have Wilson's interval.

    None for an evaluator whose results do not say of each picture whether the answer was right.
    """
    if evaluator not in _RIGHT:
        return None
    metric, is_right = _RIGHT[evaluator]
    right = is_right(result)
    of_seen, of_clean = right[seen.mask], right[~seen.mask]
    share = len(of_seen) / len(right)
    found: dict[str, Any] = {
        "metric": metric,
        "pictures": len(of_seen),
        "share": share,
        "all": float(right.mean()),
        "all_interval": list(share_of(right).interval),
        "clean": float(of_clean.mean()) if len(of_clean) else None,
        "clean_interval": list(share_of(of_clean).interval) if len(of_clean) else None,
        "overlap": float(of_seen.mean()) if len(of_seen) else None,
        **dict.fromkeys(("overlap_interval", "difference", "interval", "p_value")),
    }
    if not len(of_seen):
        return found
    from scipy.stats import binomtest  # here: slow to load

    hits = int(of_seen.sum())
    low, high = binomtest(hits, len(of_seen)).proportion_ci(CONFIDENCE, "exact")
    found["overlap_interval"] = [float(low), float(high)]
    if len(of_clean):
        clean = found["clean"]
        found["difference"] = found["all"] - clean
        found["interval"] = [share * (bound - clean) for bound in found["overlap_interval"]]
        found["p_value"] = float(binomtest(hits, len(of_seen), clean, alternative="greater").pvalue)
    return found


def matched_pairs(pictures: Pictures, places: Array, seen: Seen, training: TrainingData) -> list[dict[str, str]]:
    """Up to MOST_PAIRS pictures and the training pictures that they are copies of, evenly spread."""
    matched = np.flatnonzero(seen.copy_of >= 0)
    chosen = np.unique(np.linspace(0, len(matched) - 1, MOST_PAIRS).astype(np.int64)) if len(matched) else matched
    pairs = []
    for each in matched[chosen]:
        name, encoded = training.picture(int(seen.copy_of[each]))
        place = int(places[each])
        pairs.append(
            {
                "name": pictures.names[place],
                "picture": thumbnail(pictures.read(place)),
                "training_name": name,
                "training_picture": thumbnail(encoded),
            }
        )
    return pairs
