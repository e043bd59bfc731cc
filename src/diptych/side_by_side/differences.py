"""The numbers of several runs on the same data sets, each compared with the first run by a paired test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from diptych.evaluation import EVALUATORS
from diptych.evaluation.comparison import compare
from diptych.evaluation.evaluator import Number, Result, numbers
from diptych.evaluation.paired import Difference
from diptych.side_by_side.runs import ComparedRun

NO_RESULT: Result = {"metrics": {}}


@dataclass(frozen=True)
class Cell:
    """A number of one run."""

    number: Number
    difference: Difference | None
    """From the first run; None if the test is not possible, since the pictures or classes differ."""


@dataclass(frozen=True)
class Row:
    """A number on a data set, in each run."""

    evaluator: str
    data: str
    metric: str
    cells: tuple[Cell | None, ...]
    """None for a run without this number."""


def differences(runs: Sequence[ComparedRun]) -> list[Row]:
    """The numbers of all runs: evaluator by evaluator, data set by data set."""
    tests = [
        {(each.evaluator, each.data, each.metric): each.difference for each in compare(runs[0].results, run.results)}
        for run in runs[1:]
    ]
    rows = []
    for evaluator in EVALUATORS:
        sections = [run.results.get(evaluator, {}) for run in runs]
        for data in dict.fromkeys(name for section in sections for name in section):
            known = [
                {each.name: each for each in numbers(section[data])} if data in section else {} for section in sections
            ]
            for metric in dict.fromkeys(name for each in known for name in each):
                cells = (
                    Cell(each[metric], test.get((evaluator, data, metric))) if metric in each else None
                    for each, test in zip(known, [{}, *tests], strict=True)
                )
                rows.append(Row(evaluator, data, metric, tuple(cells)))
    return rows
