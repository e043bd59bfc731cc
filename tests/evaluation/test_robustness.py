from __future__ import annotations

import json
import math

import numpy as np
import pytest

from diptych.evaluation.intervals import Measured, wilson
from diptych.evaluation.robustness import difference, fit_line, read_baseline, robustness

BASELINE = "model,photos,sketches,other\nsmall,0.5,0.2,0.1\nmiddle,0.7,0.4,\nlarge,0.8,0.55,0.3\n"


def result(classes, right_of_class, pictures=200):
    """A zero-shot result with as many pictures of each class, by class number."""
    total = sum(right_of_class.values())
    return {
        "pictures": pictures * len(right_of_class),
        "classes": classes,
        "metrics": {"top1": total / (pictures * len(right_of_class))},
        "intervals": {"top1": list(wilson(total, pictures * len(right_of_class)))},
        "per_class": [[each, pictures, right] for each, right in right_of_class.items()],
    }


def test_a_line_through_the_logits_is_found_again():
    accuracies = np.array([0.3, 0.5, 0.62, 0.9])
    line = fit_line([(each, 1 / (1 + math.exp(-(0.8 * math.log(each / (1 - each)) - 0.6)))) for each in accuracies])
    assert (line.slope, line.intercept, line.models) == (pytest.approx(0.8), pytest.approx(-0.6), 4)
    assert line(0.5) == pytest.approx(1 / (1 + math.exp(0.6)))


def test_effective_robustness_is_the_accuracy_beyond_the_baseline(tmp_path):
    (tmp_path / "models.csv").write_text(BASELINE)
    baseline = read_baseline(tmp_path / "models.csv")
    zero_shot = {
        "photos": result(["cat", "dog"], {0: 140, 1: 140}),
        "sketches": result(["cat", "dog"], {0: 120, 1: 120}),
    }

    row = robustness(zero_shot, "photos", baseline)["shifted"]["sketches"]

    assert row["gap"]["value"] == pytest.approx(-0.1)
    assert row["expected_top1"] == pytest.approx(0.4, abs=0.02)  # the middle model's, which is near the line
    assert row["effective_robustness"]["value"] == pytest.approx(0.6 - row["expected_top1"])
    low, high = row["effective_robustness"]["interval"]
    assert 0 < low < row["effective_robustness"]["value"] < high
    assert row["baseline_models"] == 3
    json.dumps(row, allow_nan=False)


def test_the_reference_is_measured_on_the_classes_that_the_shifted_version_has():
    photos = result(["cat", "dog", "cow"], {0: 200, 1: 100, 2: 0})
    sketches = result(["cat", "dog", "cow"], {0: 150, 1: 50})
    row = robustness({"photos": photos, "sketches": sketches}, "photos")["shifted"]["sketches"]
    assert row["reference_top1"]["value"] == 0.75
    assert row["gap"]["value"] == pytest.approx(-0.25)
    assert (row["expected_top1"], row["effective_robustness"]) == (None, None)


def test_a_shifted_version_that_too_few_models_know_has_no_expectation(tmp_path):
    (tmp_path / "models.csv").write_text(BASELINE)
    zero_shot = {"photos": result(["cat"], {0: 140}), "other": result(["cat"], {0: 120})}
    row = robustness(zero_shot, "photos", read_baseline(tmp_path / "models.csv"))["shifted"]["other"]
    assert row["expected_top1"] is None and row["gap"]["value"] == pytest.approx(-0.1)


def test_the_interval_of_a_gap_is_newcombes():
    # Newcombe (1998), table II: 56 of 70 minus 48 of 80, method 10.
    measured = [Measured(hits / total, wilson(hits, total)) for hits, total in ((48, 80), (56, 70))]
    assert difference(*measured).interval == pytest.approx((0.0524, 0.3339), abs=6e-5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model,photos,sketches\na,0.5,0.2\n", "has 2 lines"),
        (BASELINE.replace("0.55", "55"), "line 4: '55' is not an accuracy; expected a share from 0 to 1"),
        (BASELINE.replace(",0.3\n", "\n"), "line 4 has 3 cells"),
    ],
)
def test_a_baseline_that_cannot_be_used_is_one_line(tmp_path, text, message):
    (tmp_path / "models.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_baseline(tmp_path / "models.csv")
