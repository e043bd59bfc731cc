"""What every evaluator takes and returns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from diptych.evaluation.data_sets import DataSet, Reads
from diptych.evaluation.features import Features

AVERAGED = " (EMA)"
"""What is added to the name of data on which averaged weights were measured, to keep the numbers apart."""

Result = dict[str, Any]
"""What an evaluator measured, as evaluation.json contains it. It always has

    pictures   the number of pictures that were measured
    rejected   name of each picture that could not be decoded → the reason
    metrics    name → number; null where it means nothing, such as top-5 among three classes
    chance     name → what guessing would reach
    intervals  name → [lowest, highest] of the 95 % confidence interval, where one is known

and may have more, such as examples."""


@dataclass(frozen=True)
class Evaluator:
    """A way to measure a model."""

    title: str
    """What tables call it."""
    measure: Callable[[Features, DataSet], Result]
    """Every rank calls it and gets the same result. It raises UserError if the data cannot be used."""
    reads: Reads
    help: str
    """What its option of `diptych evaluate` takes."""
    fits: bool = False
    """Whether it fits a classifier: then its option names the pictures to fit on, and the data are --zero-shot's."""
    fewest_pictures: int = 1
    """It needs at least so many."""
    headline: tuple[str, ...] = ()
    """The numbers that stand for the others in curves and short tables; empty: all."""
    not_shares: tuple[str, ...] = ()
    """The numbers that are not shares."""

    @property
    def heading(self) -> str:
        """The title, for the beginning of a line."""
        return f"{self.title[0].upper()}{self.title[1:]}"

    def is_headline(self, number: str) -> bool:
        """Whether a number stands for the others."""
        return not self.headline or number in self.headline

    def is_share(self, number: str) -> bool:
        """Whether a number is from 0 to 1, and is compared in per cent."""
        return number not in self.not_shares


class Number(NamedTuple):
    """One number of a result."""

    name: str
    value: float
    interval: tuple[float, float] | None
    """Lowest and highest value of the 95 % confidence interval, if known."""


def number_name(evaluator: str, data: str, number: str, *, fits: bool) -> str:
    """The name of a number among all of a model: `unseen/top1`; of a fitted classifier: `unseen/linear_probe/top1`."""
    return f"{data}/{evaluator}/{number}" if fits else f"{data}/{number}"


def numbers(result: Mapping[str, Any]) -> Iterator[Number]:
    """The numbers that a result has, in its order."""
    for name, value in result["metrics"].items():
        if value is not None:
            interval = result.get("intervals", {}).get(name)
            yield Number(name, value, tuple(interval) if interval else None)
