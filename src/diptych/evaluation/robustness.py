"""How much accuracy a model keeps on shifted versions of a data set, and how much of that is robustness.

Models that are better on a data set are mostly better on its shifted versions too. Effective robustness (Taori et al.
2020, "Measuring Robustness to Natural Distribution Shifts in Image Classification") is how much the accuracy on a
shifted version exceeds that of other models which are as accurate on the data set. The other models, usually trained on
the data set itself, are given by their accuracies; a line is fitted to the logits of these.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diptych.errors import UserError
from diptych.evaluation.intervals import Interval, Measured, wilson
from diptych.files import read_text

FEWEST_MODELS = 3
NEAREST_TO_CERTAIN = 1e-3
"""Accuracies nearer to 0 or 1 are moved to here, since their logits grow without bound."""


@dataclass(frozen=True)
class Baseline:
    """The accuracies of other models: data set → those of all models, in one order; None where one is unknown."""

    source: str
    accuracies: Mapping[str, Sequence[float | None]]

    def line(self, reference: str, shifted: str) -> Line | None:
        """Fit the accuracies on the shifted version to those on the reference; None if too few models have both."""
        both = zip(self.accuracies.get(reference, ()), self.accuracies.get(shifted, ()), strict=False)
        points = [(one, other) for one, other in both if one is not None and other is not None]
        return fit_line(points) if len({one for one, _ in points}) >= FEWEST_MODELS else None


@dataclass(frozen=True)
class Line:
    """logit(accuracy on the shifted version) = slope · logit(accuracy on the reference) + intercept."""

    slope: float
    intercept: float
    models: int

    def __call__(self, accuracy: float) -> float:
        return 1 / (1 + math.exp(-(self.slope * _logit(accuracy) + self.intercept)))


def fit_line(points: Sequence[tuple[float, float]]) -> Line:
    """Fit by least squares the logits of (accuracy on the reference, accuracy on the shifted version)."""
    one, other = (np.array([_logit(point[side]) for point in points]) for side in (0, 1))
    slope, intercept = np.polyfit(one, other, 1)
    return Line(float(slope), float(intercept), len(points))


def read_baseline(path: Path) -> Baseline:
    """Read a CSV file with a row for each model and a column for each data set, with accuracies from 0 to 1.

    The first line has the names of the columns; the first column is the model's name. A cell may be empty.

    Raises:
        UserError: the file cannot be read or has another form.
    """
    expected = "expected a CSV file: model and the names of the data sets in the first line, then a line for each model"
    rows = list(csv.reader(read_text(path, expected).splitlines()))
    if len(rows) < 1 + FEWEST_MODELS or len(rows[0]) < 3:
        raise UserError(f"{path} has {len(rows)} lines; {expected}, at least {FEWEST_MODELS} of them")
    accuracies: dict[str, list[float | None]] = {name.strip(): [] for name in rows[0][1:]}
    for number, row in enumerate(rows[1:], start=2):
        if not row:
            continue
        if len(row) != len(rows[0]):
            raise UserError(f"{path}, line {number} has {len(row)} cells and the first line {len(rows[0])}; {expected}")
        for name, cell in zip(accuracies, row[1:], strict=True):
            accuracies[name].append(_accuracy(cell.strip(), path, number))
    return Baseline(str(path), accuracies)


def check_names(reference: str, baseline: Baseline | None, data_sets: Sequence[str]) -> None:
    """Check that there are shifted versions of the reference, and that the baseline knows at least one of them.

    Raises:
        UserError: there is no such data set, no other one, or the baseline has none of the columns that are needed.
    """
    if reference not in data_sets or len(data_sets) < 2:
        raise UserError(
            f"--shifted-from {reference}: the data sets of --zero-shot are {', '.join(data_sets) or 'none'}; expected "
            "the name of one of them, and at least one other that is a shifted version of it"
        )
    if baseline is None:
        return
    shifted = [name for name in data_sets if name != reference and name in baseline.accuracies]
    if reference not in baseline.accuracies or not shifted:
        others = ", ".join(name for name in data_sets if name != reference)
        raise UserError(
            f"{baseline.source} has the columns {', '.join(baseline.accuracies)}; "
            f"expected {reference} and one of {others}"
        )


def robustness(
    zero_shot: Mapping[str, Mapping[str, Any]], reference: str, baseline: Baseline | None = None
) -> dict[str, Any]:
    """Compare the top-1 accuracy on a data set with that on the others, which are shifted versions of it.

    zero_shot: the results of `zero_shot` by data set.

    The accuracy on the reference is that of its pictures whose class the shifted version has too. The interval of a gap
    takes that of both accuracies into account, that of effective robustness too; the baseline's line is taken as it is.
    """
    rows = {}
    for name, result in zero_shot.items():
        if name == reference:
            continue
        shifted = Measured(result["metrics"]["top1"], tuple(result["intervals"]["top1"]))
        same = accuracy_on_classes(zero_shot[reference], result)
        line = baseline.line(reference, name) if baseline and same else None
        rows[name] = {
            "pictures": result["pictures"],
            "top1": _as_json(shifted),
            "reference_top1": _as_json(same),
            "gap": _as_json(difference(same, shifted)) if same else None,
            "expected_top1": line(same.value) if line and same else None,
            "effective_robustness": _as_json(_beyond(line, same, shifted)) if line and same else None,
            "baseline_models": line.models if line else 0,
        }
    return {"reference": reference, "baseline": baseline.source if baseline else None, "shifted": rows}


def accuracy_on_classes(reference: Mapping[str, Any], shifted: Mapping[str, Any]) -> Measured | None:
    """Top-1 accuracy on the reference's pictures of the classes that occur in the shifted version; None without any."""
    wanted = {shifted["classes"][each] for each, _, _ in shifted["per_class"]}
    counts = [
        (pictures, right) for each, pictures, right in reference["per_class"] if reference["classes"][each] in wanted
    ]
    pictures, right = (sum(each[which] for each in counts) for which in (0, 1))
    return Measured(right / pictures, wilson(right, pictures)) if pictures else None


def difference(first: Measured, second: Measured) -> Measured:
    """The second number minus the first, of different pictures, with Newcombe's interval (1998, method 10)."""
    value = second.value - first.value
    below = math.hypot(second.value - second.interval[0], first.interval[1] - first.value)
    above = math.hypot(second.interval[1] - second.value, first.value - first.interval[0])
    return Measured(value, (max(-1.0, value - below), min(1.0, value + above)))


def _beyond(line: Line, reference: Measured, shifted: Measured) -> Measured:
    """The accuracy on the shifted version minus what the line expects of the reference's."""
    low, high = sorted(line(each) for each in reference.interval)
    interval: Interval = (low, high)
    return difference(Measured(line(reference.value), interval), shifted)


def _logit(accuracy: float) -> float:
    kept = min(max(accuracy, NEAREST_TO_CERTAIN), 1 - NEAREST_TO_CERTAIN)
    return math.log(kept / (1 - kept))


def _accuracy(cell: str, path: Path, line: int) -> float | None:
    if not cell:
        return None
    try:
        accuracy = float(cell)
    except ValueError:
        accuracy = math.nan
    if not 0 <= accuracy <= 1:
        raise UserError(
            f"{path}, line {line}: {cell!r} is not an accuracy; expected a share from 0 to 1, such as 0.763"
        )
    return accuracy


def _as_json(measured: Measured | None) -> dict[str, Any] | None:
    return {"value": measured.value, "interval": list(measured.interval)} if measured else None
