"""Measure the loss on held-out pairs, with as many negatives for each pair whatever batch the model was trained in."""

from __future__ import annotations

import math

import numpy as np

from diptych.data.captions import clean_caption
from diptych.evaluation.data_sets import DataSet
from diptych.evaluation.evaluator import Result
from diptych.evaluation.features import Features
from diptych.evaluation.intervals import as_result, bootstrap
from diptych.evaluation.left_out import by_reason
from diptych.evaluation.pictures import subset
from diptych.evaluation.similarity import Array, similarities, unit_norm

GROUP = 256
"""Pairs that are compared with one another, so that each has 255 negatives."""
SEED = 0


def validation(features: Features, data: DataSet) -> Result:
    """Measure the softmax loss (paper, section 2.3) over pictures with their first captions, in groups of GROUP pairs.

    The groups are drawn with a fixed seed, since neighbours in shards may resemble each other. Losses of runs with
    different batch sizes can be compared, which those of their batches cannot: a larger batch is a harder question.

    Raises:
        ValueError: no picture can be decoded.
    """
    embedded = features.pictures(data.pictures)
    kept = subset(data.pictures, embedded.kept)
    texts = unit_norm(features.embed_texts([clean_caption(captions[0]) for captions in kept.captions]))
    losses = pair_losses(unit_norm(embedded.embeddings), texts, features.logit_scale)
    mean = bootstrap(lambda counts: counts @ losses / len(losses), len(losses))
    return {
        "pictures": len(kept),
        "rejected": embedded.rejected,
        "refused": by_reason(data.pictures.refused),
        **as_result({"loss": mean}),
        "chance": {"loss": math.log(min(GROUP, len(kept)))},
    }


def pair_losses(images: Array, texts: Array, logit_scale: float) -> Array:
    """f64[pairs]: the loss of each pair, the mean over both directions; images, texts: f32[pairs dim] of unit norm.

    If the pairs do not fill the last group, it is filled with pairs of the one before, which count only there.
    """
    num_pairs = len(images)
    order = np.random.default_rng(SEED).permutation(num_pairs)
    losses = np.empty(num_pairs)
    for start in range(0, num_pairs, GROUP):
        group = order[max(0, min(start, num_pairs - GROUP)) : start + GROUP]
        logits = logit_scale * similarities(images[group], texts[group]).astype(np.float64)
        own = np.diagonal(logits)
        both = (_log_sum_exp(logits) - own + _log_sum_exp(logits.T) - own) / 2
        new = order[start : start + GROUP]
        losses[new] = both[-len(new) :]
    return losses


def _log_sum_exp(logits: Array) -> Array:
    highest = logits.max(axis=1, keepdims=True)
    sums: Array = np.log(np.exp(logits - highest).sum(axis=1)) + highest[:, 0]
    return sums
