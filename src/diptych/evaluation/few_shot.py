"""Compare zero-shot with linear probes that are fitted to a few pictures of each class (paper, figures 6 and 7)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from diptych.evaluation.data_sets import DataSet
from diptych.evaluation.evaluator import Result
from diptych.evaluation.features import Features
from diptych.evaluation.intervals import Interval, Measured, as_result, bootstrap_values, percentiles, share_of, wilson
from diptych.evaluation.linear_probe import MOST_WORK, Probe, answers_of, labelled_rows, probe_of_tower, train_of
from diptych.evaluation.logistic_regression import Fitted, best_inverse_penalty, fit
from diptych.evaluation.pictures import Pictures
from diptych.evaluation.similarity import Array
from diptych.evaluation.zero_shot import answers

SHOTS = (1, 2, 4, 8, 16)
"""Numbers of labelled pictures of each class."""
DRAWS = 5
"""How many times so many pictures are drawn."""
MOST_VALIDATION_SHOTS = 4
"""Largest number of other pictures of each class on which the penalty is chosen."""
STUDENT_TO_NORMAL = (2.776 / 1.960) ** 2
"""By how much the variance over so few draws is enlarged: the quantiles of Student's t with 4 degrees of freedom, and
of the normal distribution."""


@dataclass(frozen=True)
class Curve:
    """The probes of each number of shots, one for each draw, and the probe of all training pictures."""

    fitted: dict[int, list[Fitted]]
    inverse_penalties: dict[int, float]
    penalties_taken_from: dict[int, int]
    """Numbers of shots that leave no picture to choose a penalty on → the fewer shots whose penalty they have; 0 if
    there are none, and the penalty is the variance of the features."""
    left_out: dict[int, str]
    """Numbers of shots without probes → the reason."""
    whole: Probe


def few_shot(features: Features, data: DataSet) -> Result:
    """Measure top-1 of zero-shot, of probes fitted to 1, 2, 4, 8 and 16 pictures of each class, and of all.

    `zero_shot_equals_shots` is the number of pictures of each class with which a probe reaches the accuracy of
    zero-shot, interpolated between logarithms; null if it is outside what was measured.

    Raises:
        ValueError: as `linear_probe`, or a label is not a class.
    """
    train = train_of(data)
    curve = features.once(("few_shot", train.location), lambda: fit_curve(features, train))
    embedded = features.before_projection(data.pictures)
    labels, judged = answers(features, data)
    zero = judged.above == 0
    names = np.array(data.pictures.labels)[embedded.kept]
    # shots → bool[draws pictures]
    right: dict[float, Array] = {
        shots: np.stack([each.predict(embedded.embeddings) == names for each in fitted])
        for shots, fitted in curve.fitted.items()
    }
    whole = curve.whole.facts["train_pictures"] / curve.whole.facts["train_classes"]
    if whole > max(right, default=0):
        right[whole] = (curve.whole.fitted.predict(embedded.embeddings) == names)[None]
    points = [(shots, float(each.mean())) for shots, each in right.items()]
    equal = shots_that_match(float(zero.mean()), points)
    is_within = 0 < equal < math.inf
    measured = {
        metric_of(0): share_of(zero),
        **{metric_of(shots): _share_over_draws(each) for shots, each in right.items()},
        "zero_shot_equals_shots": Measured(equal, _interval_of_match(equal, zero, right)) if is_within else None,
    }
    chance = 1 / curve.whole.facts["train_classes"]
    return {
        "pictures": len(labels),
        "rejected": embedded.rejected,
        **as_result(measured),
        "chance": {metric_of(0): 1 / len(data.prompts.class_names), **{metric_of(shots): chance for shots in right}},
        "zero_shot_equals": in_words(equal, points),
        "shots": list(right),
        "draws": DRAWS,
        "top1_of_draws": {metric_of(shots): each.mean(axis=1).tolist() for shots, each in right.items()},
        "shots_left_out": {str(shots): reason for shots, reason in curve.left_out.items()},
        "inverse_penalties": {str(shots): each for shots, each in curve.inverse_penalties.items()},
        "penalties_taken_from": {str(shots): fewer for shots, fewer in curve.penalties_taken_from.items()},
        "share_of_known_classes": float(np.isin(names, curve.whole.fitted.model.classes_).mean()),
        "share_fitted": curve.whole.share_fitted(embedded),
        "answers": answers_of(
            data.pictures,
            embedded,
            {metric_of(0): zero[None], **{metric_of(shots): each for shots, each in right.items()}},
        ),
        "of": curve.whole.facts["of"],
        "train_location": train.location,
        "train_pictures": curve.whole.facts["train_pictures"],
        "train_pictures_available": curve.whole.facts["train_pictures_available"],
        "train_classes": curve.whole.facts["train_classes"],
    }


def metric_of(shots: float) -> str:
    """The name of the accuracy after so many shots; another number than those of SHOTS is that of all pictures."""
    return f"top1_{shots}_shot{'' if shots == 1 else 's'}" if shots in (0, *SHOTS) else "top1_all"


def fit_curve(features: Features, train: Pictures) -> Curve:
    """Fit the probes of each number of shots, as far as every class has so many pictures.

    Draws are nested: the picture of one shot is one of the two of two shots. The penalty of a number of shots is
    chosen with the first draw, on as many other pictures of each class, at most four; if there are none, it is that of
    fewer shots.

    Raises:
        ValueError: as `fit_probe`.
    """
    whole = probe_of_tower(features, train)
    rows, labels, _ = labelled_rows(features.before_projection, train)
    classes, counts = np.unique(labels, return_counts=True)
    fewest = int(counts.argmin())
    fitted: dict[int, list[Fitted]] = {}
    penalties: dict[int, float] = {}
    taken_from: dict[int, int] = {}
    left_out: dict[int, str] = {}
    for shots in SHOTS:
        if shots > counts[fewest]:
            left_out[shots] = f"{classes[fewest]} has only {counts[fewest]}"
        elif shots * len(classes) ** 2 * rows.shape[1] > MOST_WORK:
            left_out[shots] = f"too much work for {len(classes):,} classes"
        else:
            draws = [draw(labels, seed) for seed in range(DRAWS)]
            penalty = _penalty(rows, labels, draws[0], shots)
            if penalty is None:
                taken_from[shots] = max(penalties, default=0)
                penalty = penalties.get(taken_from[shots], 1 / (float(rows.var()) or 1.0))
            penalties[shots] = penalty
            chosen = [np.concatenate([places[:shots] for places in each]) for each in draws]
            fitted[shots] = [fit(rows[places], labels[places], penalties[shots]) for places in chosen]
    return Curve(fitted, penalties, taken_from, left_out, whole)


def draw(labels: Array, seed: int) -> list[Array]:
    """The places of each class's pictures in random order."""
    random = np.random.default_rng(seed)
    return [random.permutation(np.flatnonzero(labels == each)) for each in np.unique(labels)]


def shots_that_match(accuracy: float, points: Sequence[tuple[float, float]]) -> float:
    """The number of shots at which the curve through (shots, accuracy) first reaches an accuracy.

    It is interpolated between the logarithms of the shots. Zero if the first point is above the accuracy already, and
    infinite if no point reaches it.
    """
    if points[0][1] > accuracy:
        return 0.0
    before = points[0]
    for shots, reached in points:
        if reached >= accuracy:
            rise = reached - before[1]
            share = (accuracy - before[1]) / rise if rise else 1.0
            return math.exp(math.log(before[0]) + share * (math.log(shots) - math.log(before[0])))
        before = shots, reached
    return math.inf


def in_words(shots: float, points: Sequence[tuple[float, float]]) -> str:
    """`3.4`, or what is known if the curve does not reach zero-shot: `fewer than 1`, `more than 16`."""
    if shots == 0:
        return f"fewer than {points[0][0]:.3g}"
    return f"more than {points[-1][0]:.3g}" if math.isinf(shots) else f"{shots:.2g}"


def _penalty(rows: Array, labels: Array, places: Sequence[Array], shots: int) -> float | None:
    """The best C of probes on the first `shots` pictures of each class; None if no class has others."""
    held_out = np.concatenate([each[shots : shots + min(shots, MOST_VALIDATION_SHOTS)] for each in places])
    if not len(held_out):
        return None
    chosen = np.concatenate([each[:shots] for each in places])
    return best_inverse_penalty(rows[chosen], labels[chosen], rows[held_out], labels[held_out])[0]


def _share_over_draws(right: Array) -> Measured:
    """The share of right answers, bool[draws pictures], and its interval over the choice of pictures and of shots.

    The interval is Wilson's, for as many pictures as would give the share its variance. In simulations it covers
    97-98 %.
    """
    draws, pictures = right.shape
    share = float(right.mean())
    if draws == 1:
        return share_of(right[0])
    variance = right.mean(axis=0).var(ddof=1) / pictures if pictures > 1 else 0.0
    variance += STUDENT_TO_NORMAL * right.mean(axis=1).var(ddof=1) / draws
    worth = share * (1 - share) / variance if variance else pictures
    return Measured(share, wilson(share * worth, worth))


def _interval_of_match(equal: float, zero: Array, right: Mapping[float, Array]) -> Interval:
    """The interval of the number of shots that zero-shot equals, by a bootstrap over the pictures and the draws.

    A bound outside what was measured is the smallest or largest number of shots that was.
    """
    random = np.random.default_rng(0)

    def matched(counts: Array) -> Array:
        total = counts.sum(axis=1)
        curves = []
        for each in right.values():
            of_draws = counts @ each.T / total[:, None]
            drawn = random.integers(len(each), size=of_draws.shape)
            curves.append(np.take_along_axis(of_draws, drawn, axis=1).mean(axis=1))
        resamples = zip(counts @ zero / total, np.transpose(curves), strict=True)
        found = [shots_that_match(level, list(zip(right, curve, strict=True))) for level, curve in resamples]
        return np.clip(found, min(right), max(right))

    low, high = percentiles(bootstrap_values(matched, len(zero)))
    return min(low, equal), max(high, equal)
