"""Measure a linear probe: logistic regression on a model's features, or on pixels as a baseline (paper, appendix A.3).

The paper uses the features of a vision transformer before the projection, and of a ResNet after its attention pooling:
both are what the trunk of the image tower gives. OpenAI's example and CLIP_benchmark use the embeddings, after the
projection.

The work is limited by leaving out training pictures, so that a fit takes minutes. The result records what was used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from diptych.errors import UserError
from diptych.evaluation.data_sets import DataSet
from diptych.evaluation.embedding import Embedded, identity
from diptych.evaluation.evaluator import Result
from diptych.evaluation.features import Features
from diptych.evaluation.intervals import as_result, per_class_share, share_of
from diptych.evaluation.logistic_regression import MOST_ITERATIONS, Fitted, best_inverse_penalty, fit
from diptych.evaluation.pictures import Pictures, subset
from diptych.evaluation.similarity import Array
from diptych.terminal import percent

VALIDATION_SHARE = 0.2

MOST_WORK = 20_000_000_000
"""pictures x features x classes: one iteration on 2e10 takes about 2 s on one core, and a search some hundreds of them.
It has room for all pictures of most data sets of the paper; of ImageNet, for 26 of each class at 768 features."""
MOST_PIXEL_WORK = 300_000_000
PIXEL_SEARCH_ITERATIONS = 40
"""Pixels need hundreds of iterations, and are only compared with; after 40 the search finds nearly the same penalty."""
PIXEL_SIDES = (32, 24, 16, 12, 10, 8)

Embed = Callable[[Pictures], Embedded]


@dataclass(frozen=True)
class PixelEncoder:
    """Embeds a picture as its own pixels, resized to a square with this side."""

    side: int

    def prepare(self, picture: Image.Image) -> Array:
        square = ImageOps.fit(picture, (self.side, self.side), Image.Resampling.BICUBIC)
        return np.asarray(square, dtype=np.float32).ravel() / 255

    def embed_prepared(self, prepared: Sequence[Array]) -> Array:
        return np.stack(prepared)


@dataclass(frozen=True)
class Probe:
    """A fitted logistic regression, what gives its features, and facts about the fit."""

    fitted: Fitted
    embed: Embed
    facts: dict[str, Any]
    digests: Array
    """u64[pictures], of the files of the training pictures; empty if unknown."""

    def share_fitted(self, measured: Embedded) -> float | None:
        """The share of pictures whose files are among the training pictures; None if unknown."""
        return float(np.isin(measured.digests, self.digests).mean()) if len(measured.digests) else None


def linear_probe(features: Features, data: DataSet) -> Result:
    """Fit a linear probe on what the image tower gives for the training pictures, and measure it.

    Raises:
        ValueError: the training pictures are of fewer than two classes, or no picture can be decoded.
    """
    return measure_probe(data.pictures, probe_of_tower(features, train_of(data)))


def embedding_probe(features: Features, data: DataSet) -> Result:
    """Fit a linear probe on the training pictures' embeddings, which are of unit norm, and measure it.

    Raises:
        ValueError: as `linear_probe`.
    """
    train = train_of(data)
    probe = features.once(
        ("embedding_probe", train.location), lambda: fit_probe(features.pictures, train, facts={"of": "embeddings"})
    )
    return measure_probe(data.pictures, probe)


def pixel_baseline(features: Features, data: DataSet) -> Result:
    """Fit a logistic regression on pixels, as a baseline without a model, and measure it.

    Raises:
        ValueError: as `linear_probe`.
    """
    train = train_of(data)
    probe = features.once(("pixel_baseline", train.location), lambda: fit_pixel_baseline(features, train))
    return measure_probe(data.pictures, probe)


def probe_of_tower(features: Features, train: Pictures) -> Probe:
    """The linear probe on what the image tower gives; it is fitted once for all evaluators."""
    return features.once(
        ("linear_probe", train.location),
        lambda: fit_probe(features.before_projection, train, facts={"of": features.of_tower}),
    )


def fit_probe(
    embed: Embed,
    train: Pictures,
    most_work: int = MOST_WORK,
    search_iterations: int = MOST_ITERATIONS,
    facts: dict[str, Any] | None = None,
) -> Probe:
    """Fit a logistic regression on embedded pictures.

    The penalty is chosen on a held-out fifth of the training pictures; then all are used for the fit.

    facts: what else the result records.

    Raises:
        ValueError: there are fewer than two classes, or no picture can be decoded.
    """
    rows, labels, digests = labelled_rows(embed, train)
    classes = len(set(labels.tolist()))
    chosen = evenly(labels, max(classes, most_work // (classes * rows.shape[1])))
    rows, labels = rows[chosen], labels[chosen]

    inverse_penalty, validated = _search(rows, labels, search_iterations)
    fitted = fit(rows, labels, inverse_penalty)
    return Probe(
        fitted,
        embed,
        {
            **(facts or {}),
            "train_location": train.location,
            "train_pictures": len(labels),
            "train_pictures_available": len(train),
            "train_classes": classes,
            "features": rows.shape[1],
            "inverse_penalty": inverse_penalty,
            "validation_top1": validated,
            "search_iterations": search_iterations,
            "iterations": fitted.iterations,
            "converged": fitted.iterations < MOST_ITERATIONS,
        },
        digests,
    )


def labelled_rows(embed: Embed, train: Pictures) -> tuple[Array, Array, Array]:
    """The rows f32[pictures width], the labels and the digests of the pictures that can be decoded.

    Raises:
        ValueError: there are fewer than two classes, or no picture can be decoded.
    """
    embedded = embed(train)
    labels = np.array(train.labels)[embedded.kept]
    classes = len(set(labels.tolist()))
    if classes < 2:
        raise UserError(f"{train.location} has pictures of {classes} class; a classifier needs at least two")
    return embedded.embeddings, labels, embedded.digests


def measure_probe(pictures: Pictures, probe: Probe) -> Result:
    """Measure the probe's accuracy, and the shares of pictures whose class, or which themselves, it was trained on."""
    embedded = probe.embed(pictures)
    labels = np.array(pictures.labels)[embedded.kept]
    right = probe.fitted.predict(embedded.embeddings) == labels
    _, numbers = np.unique(labels, return_inverse=True)
    measured = {"top1": share_of(right), "mean_per_class_recall": per_class_share(right, numbers)}
    chance = 1 / probe.facts["train_classes"]
    return {
        "pictures": len(labels),
        "rejected": embedded.rejected,
        **as_result(measured),
        "chance": {"top1": chance, "mean_per_class_recall": chance},
        "share_of_known_classes": float(np.isin(labels, probe.fitted.model.classes_).mean()),
        "share_fitted": probe.share_fitted(embedded),
        "answers": answers_of(pictures, embedded, {"top1": right[None]}),
        **probe.facts,
    }


def answers_of(pictures: Pictures, embedded: Embedded, right: Mapping[str, Array]) -> dict[str, Any]:
    """What a later comparison with another model needs of each picture.

    right: metric → bool[draws pictures]. Kept is how many of the draws are right about each picture.
    """
    labels = np.array(pictures.labels)[embedded.kept]
    return {
        "of": identity(pictures, embedded),
        "labels": np.unique(labels, return_inverse=True)[1].tolist(),
        "draws": {metric: len(each) for metric, each in right.items()},
        "right": {metric: each.sum(axis=0).tolist() for metric, each in right.items()},
    }


def remarks(result: Mapping[str, Any]) -> list[str]:
    """Sentences about what a fitted classifier knows of the pictures that it is measured on."""
    said = []
    if result["share_of_known_classes"] < 1:
        known = percent(result["share_of_known_classes"])
        said.append(f"{known} of the pictures belong to a class that it was fitted to; it cannot name the others.")
    if fitted := result.get("share_fitted"):
        said.append(f"It was fitted to {percent(fitted)} of these pictures themselves: its accuracy is too high.")
    return said


def fit_pixel_baseline(features: Features, train: Pictures) -> Probe:
    """Fit a logistic regression on the largest pictures that take seconds."""
    classes = len(set(train.labels))
    allowed = [side for side in PIXEL_SIDES if len(train) * classes * side * side * 3 <= MOST_PIXEL_WORK]
    encoder = PixelEncoder(allowed[0] if allowed else PIXEL_SIDES[-1])
    most_pictures = max(classes, MOST_PIXEL_WORK // (classes * encoder.side**2 * 3))
    # Choose before decoding: reading 100,000 pictures to use 5,000 would take longer than the fit.
    chosen = subset(train, evenly(np.array(train.labels), most_pictures))
    pixels = {"pixels": f"{encoder.side}x{encoder.side}x3"}
    probe = fit_probe(features.of(encoder).pictures, chosen, MOST_PIXEL_WORK, PIXEL_SEARCH_ITERATIONS, pixels)
    probe.facts["train_pictures_available"] = len(train)
    return probe


def evenly(labels: Array, most: int) -> Array:
    """Sorted places of at most `most` pictures, as many of each class as possible; always the same places."""
    shuffled = np.random.default_rng(0).permutation(len(labels))
    order = shuffled[np.argsort(labels[shuffled], kind="stable")]
    _, starts, counts = np.unique(labels[order], return_index=True, return_counts=True)
    turn = np.arange(len(order)) - np.repeat(starts, counts)
    return np.sort(order[np.argsort(turn, kind="stable")][:most])


def train_of(data: DataSet) -> Pictures:
    assert data.train is not None, "evaluators that fit get pictures to fit on"
    return data.train


def _search(features: Array, labels: Array, most_iterations: int) -> tuple[float, float | None]:
    """The C that is best on held-out pictures, and its accuracy there; (1, None) if none can be held out."""
    held_out = _validation(labels)
    if not held_out.any() or len(set(labels[~held_out].tolist())) < 2:
        return 1.0, None
    return best_inverse_penalty(
        features[~held_out], labels[~held_out], features[held_out], labels[held_out], most_iterations
    )


def _validation(labels: Array) -> Array:
    """bool[pictures]: True for about a fifth of each class that has two pictures or more."""
    held_out = np.zeros(len(labels), dtype=bool)
    random = np.random.default_rng(1)
    for each in np.unique(labels):
        places = random.permutation(np.flatnonzero(labels == each))
        held_out[places[: min(len(places) - 1, round(len(places) * VALIDATION_SHARE + 0.3))]] = True
    return held_out
