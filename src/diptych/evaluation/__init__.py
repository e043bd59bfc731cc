"""The evaluators by name: each gives its metrics, chance beside them, and what there is to show."""

from collections.abc import Callable
from typing import Any

from diptych.evaluation import linear_probe, retrieval, zero_shot

EVALUATORS: dict[str, Callable[..., dict[str, Any]]] = {
    "zero_shot": zero_shot.zero_shot,
    "retrieval": retrieval.retrieval,
    "linear_probe": linear_probe.linear_probe,
}

METHODS = {
    "zero_shot": "zero-shot",
    "linear_probe": "linear probe",
    "pixel_baseline": "pixels, log. regression",
}
"""What classifies pictures, by its name in an evaluation, with its title in a table."""
