"""The evaluators by name; each returns its metrics, what chance would reach, and examples."""

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
"""Key of a classification method in an evaluation → its title in tables."""
