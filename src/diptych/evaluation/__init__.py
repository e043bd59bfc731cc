"""The evaluators by name: each gives its metrics, chance beside them, and what there is to show."""

from diptych.evaluation import linear_probe, retrieval, zero_shot

EVALUATORS = {
    "zero_shot": zero_shot.zero_shot,
    "retrieval": retrieval.retrieval,
    "linear_probe": linear_probe.linear_probe,
}
