"""Fit and measure a linear probe: logistic regression on embeddings, or on pixels as a baseline (paper, appendix A.3).

The paper searches 96 values of λ; we search fewer, and limit the number of training pictures and, for pixels, their
size, so that it takes seconds. The result records what was used.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps

from diptych.errors import UserError
from diptych.evaluation.data_sets import DataSet
from diptych.evaluation.evaluator import Result
from diptych.evaluation.features import Features
from diptych.evaluation.intervals import as_result, per_class_share, share_of
from diptych.evaluation.pictures import Pictures, subset
from diptych.evaluation.similarity import Array

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

MOST_ITERATIONS = 1_000
SEARCH_ITERATIONS = 40
SEARCH = (1e-2, 1.0, 1e2)
"""Inverse strengths of the L2 penalty (scikit-learn's C) to try first; then ten times and a tenth of the best."""
VALIDATION_SHARE = 0.2

MOST_WORK = 4_000_000_000
"""pictures x features x classes: one iteration on 4e9 takes about 0.4 s on one core."""
MOST_PIXEL_WORK = 300_000_000
PIXEL_SIDES = (32, 24, 16, 12, 10, 8)


@dataclass(frozen=True)
class PixelEncoder:
    """Embeds a picture as its own pixels, resized to a square with this side."""

    side: int

    def embed_pictures(self, pictures: Sequence[Image.Image]) -> Array:
        return np.stack([self._pixels(picture) for picture in pictures])

    def _pixels(self, picture: Image.Image) -> Array:
        square = ImageOps.fit(picture, (self.side, self.side), Image.Resampling.BICUBIC)
        return np.asarray(square, dtype=np.float32).ravel() / 255


@dataclass(frozen=True)
class Probe:
    """A fitted logistic regression, the normalisation of its features, and facts about the fit."""

    model: LogisticRegression
    centre: Array
    scale: float
    facts: dict[str, Any]

    def predict(self, features: Array) -> Array:
        classes: Array = self.model.predict((features - self.centre) / self.scale)
        return classes


def linear_probe(features: Features, data: DataSet) -> Result:
    """Fit a linear probe on the training pictures' embeddings, and measure it.

    Raises:
        ValueError: the training pictures are of fewer than two classes, or no picture can be decoded.
    """
    train = _train_of(data)
    probe = features.once(("linear_probe", train.location), lambda: fit_linear_probe(features, train))
    return measure_probe(features, data.pictures, probe)


def pixel_baseline(features: Features, data: DataSet) -> Result:
    """Fit a logistic regression on pixels, as a baseline without a model, and measure it.

    Raises:
        ValueError: as `linear_probe`.
    """
    train = _train_of(data)
    of_pixels, probe = features.once(("pixel_baseline", train.location), lambda: fit_pixel_baseline(features, train))
    return measure_probe(of_pixels, data.pictures, probe)


def fit_linear_probe(features: Features, train: Pictures, most_work: int = MOST_WORK) -> Probe:
    """Fit a logistic regression on the encoder's features (for CLIP the embedding, after the projection).

    The strength of the penalty is chosen on a held-out fifth of the training pictures; then all are used for the fit.

    Raises:
        ValueError: there are fewer than two classes, or no picture can be decoded.
    """
    embedded = features.pictures(train)
    rows, labels = embedded.embeddings, np.array(train.labels)[embedded.kept]
    classes = len(set(labels.tolist()))
    if classes < 2:
        raise UserError(f"{train.location} has pictures of {classes} class; a classifier needs at least two")
    chosen = evenly(labels, max(classes, most_work // (classes * rows.shape[1])))
    rows, labels = rows[chosen], labels[chosen]
    centre, scale = rows.mean(axis=0), float(rows.std()) or 1.0
    rows = (rows - centre) / scale

    inverse_penalty, validated = _search(rows, labels)
    model = _fit(rows, labels, inverse_penalty, MOST_ITERATIONS)
    iterations = int(np.max(model.n_iter_))
    return Probe(
        model,
        centre,
        scale,
        {
            "train_location": train.location,
            "train_pictures": len(labels),
            "train_pictures_available": len(train),
            "train_classes": classes,
            "features": rows.shape[1],
            "inverse_penalty": inverse_penalty,
            "validation_top1": validated,
            "iterations": iterations,
            "converged": iterations < MOST_ITERATIONS,
        },
    )


def measure_probe(features: Features, pictures: Pictures, probe: Probe) -> Result:
    """Measure the probe's accuracy, and the share of pictures whose class it was trained on."""
    embedded = features.pictures(pictures)
    labels = np.array(pictures.labels)[embedded.kept]
    right = probe.predict(embedded.embeddings) == labels
    _, numbers = np.unique(labels, return_inverse=True)
    measured = {"top1": share_of(right), "mean_per_class_recall": per_class_share(right, numbers)}
    chance = 1 / probe.facts["train_classes"]
    return {
        "pictures": len(labels),
        "rejected": embedded.rejected,
        **as_result(measured),
        "chance": {"top1": chance, "mean_per_class_recall": chance},
        "share_of_known_classes": float(np.isin(labels, probe.model.classes_).mean()),
        **probe.facts,
    }


def fit_pixel_baseline(features: Features, train: Pictures) -> tuple[Features, Probe]:
    """Fit a logistic regression on the largest pictures that take seconds; also return the features that it reads."""
    classes = len(set(train.labels))
    allowed = [side for side in PIXEL_SIDES if len(train) * classes * side * side * 3 <= MOST_PIXEL_WORK]
    encoder = PixelEncoder(allowed[0] if allowed else PIXEL_SIDES[-1])
    most_pictures = max(classes, MOST_PIXEL_WORK // (classes * encoder.side**2 * 3))
    of_pixels = features.of(encoder)
    # Choose before decoding: reading 100,000 pictures to use 5,000 would take longer than the fit.
    chosen = subset(train, evenly(np.array(train.labels), most_pictures))
    probe = fit_linear_probe(of_pixels, chosen, MOST_PIXEL_WORK)
    probe.facts.update(train_pictures_available=len(train), pixels=f"{encoder.side}x{encoder.side}x3")
    return of_pixels, probe


def evenly(labels: Array, most: int) -> Array:
    """Sorted places of at most `most` pictures, as many of each class as possible; always the same places."""
    shuffled = np.random.default_rng(0).permutation(len(labels))
    order = shuffled[np.argsort(labels[shuffled], kind="stable")]
    _, starts, counts = np.unique(labels[order], return_index=True, return_counts=True)
    turn = np.arange(len(order)) - np.repeat(starts, counts)
    return np.sort(order[np.argsort(turn, kind="stable")][:most])


def _train_of(data: DataSet) -> Pictures:
    assert data.train is not None, "evaluators that fit get pictures to fit on"
    return data.train


def _search(features: Array, labels: Array) -> tuple[float, float | None]:
    """The inverse penalty that is best on held-out pictures, and its accuracy; (1, None) if none can be held out."""
    held_out = _validation(labels)
    if not held_out.any() or len(set(labels[~held_out].tolist())) < 2:
        return 1.0, None
    scores: dict[float, float] = {}

    def score(inverse_penalty: float) -> float:
        model = _fit(features[~held_out], labels[~held_out], inverse_penalty, SEARCH_ITERATIONS)
        return float((model.predict(features[held_out]) == labels[held_out]).mean())

    for candidate in SEARCH:
        scores[candidate] = score(candidate)
    best = max(scores, key=lambda each: scores[each])
    for candidate in (best / 10, best * 10):
        scores[candidate] = score(candidate)
    best = max(scores, key=lambda each: scores[each])
    return best, scores[best]


def _validation(labels: Array) -> Array:
    """bool[pictures]: True for about a fifth of each class that has two pictures or more."""
    held_out = np.zeros(len(labels), dtype=bool)
    random = np.random.default_rng(1)
    for each in np.unique(labels):
        places = random.permutation(np.flatnonzero(labels == each))
        held_out[places[: min(len(places) - 1, round(len(places) * VALIDATION_SHARE + 0.3))]] = True
    return held_out


def _fit(features: Array, labels: Array, inverse_penalty: float, most_iterations: int) -> LogisticRegression:
    # Imported here: scikit-learn takes a second to load, which would slow down every other verb.
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        # Not converging is reported in the result (`converged`), and is expected during the search.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(C=inverse_penalty, max_iter=most_iterations).fit(features, labels)
