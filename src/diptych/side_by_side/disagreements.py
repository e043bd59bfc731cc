"""Find pictures that one model gets right and another wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from diptych.data.picture_safety import PictureError
from diptych.errors import UserError
from diptych.evaluation.comparison import may_be_the_same
from diptych.evaluation.picture_sources import picture_named
from diptych.evaluation.similarity import Array
from diptych.evaluation.zero_shot import thumbnail

MOST_EXAMPLES = 8


@dataclass(frozen=True)
class Example:
    """A picture that one model gets right and the other wrong."""

    name: str
    picture: str | None
    """A data: URI; None if it cannot be read any more."""
    truth: str
    """Empty in retrieval, where a picture may have several captions."""
    mistake: str
    """What the wrong one says."""


@dataclass(frozen=True)
class Disagreement:
    """The pictures of one data set that one of two models gets right and the other wrong."""

    evaluator: str
    data: str
    first_only: int
    """How many only the first gets right."""
    second_only: int
    first_examples: list[Example]
    """Some that only the first gets right, evenly spread."""
    second_examples: list[Example]
    unreadable: str
    """Why pictures cannot be shown; empty if they can."""


def disagreements(first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[Disagreement]:
    """Yield the data sets whose pictures both models answered, by what evaluation.json says of each.

    A data set is left out if the pictures, labels or classes of the two results differ.
    """
    for evaluator, answers in (("zero_shot", _zero_shot), ("retrieval", _retrieval)):
        for name, result in second.get(evaluator, {}).items():
            other = first.get(evaluator, {}).get(name)
            both = answers(other, result) if other and may_be_the_same(other, result) else None
            if both:
                locations = [each["location"] for each in (result, other) if "location" in each]
                yield _disagreement(evaluator, name, *both, locations)


@dataclass(frozen=True)
class _Answers:
    names: Sequence[str]
    truths: Sequence[str]
    said: Sequence[str]
    right: Array

    def example(self, place: int, pictures: _Reader) -> Example:
        name = self.names[place]
        return Example(name, pictures.read(name), self.truths[place], self.said[place])


def _zero_shot(first: Mapping[str, Any], second: Mapping[str, Any]) -> tuple[_Answers, _Answers] | None:
    shown = [[(name, label) for name, label, _ in each.get("predictions", [])] for each in (first, second)]
    if shown[0] != shown[1] or first["classes"] != second["classes"] or not shown[0]:
        return None
    classes = second["classes"]
    names, truths = [name for name, _ in shown[0]], [classes[label] for _, label in shown[0]]
    one, other = (
        _Answers(
            names,
            truths,
            [classes[guess] for _, _, guess in each["predictions"]],
            np.array([label == guess for _, label, guess in each["predictions"]]),
        )
        for each in (first, second)
    )
    return one, other


def _retrieval(first: Mapping[str, Any], second: Mapping[str, Any]) -> tuple[_Answers, _Answers] | None:
    ranks = [each.get("ranks", {}) for each in (first, second)]
    names = ranks[0].get("pictures")
    if not names or any(ranks[0][key] != ranks[1].get(key) for key in ("pictures", "picture_of_caption")):
        return None
    one, other = (
        _Answers(
            names,
            [""] * len(names),
            [f"own caption at place {place + 1:,}" for place in each["image_to_text"]],
            np.array(each["image_to_text"]) == 0,
        )
        for each in ranks
    )
    return one, other


def _disagreement(evaluator: str, data: str, one: _Answers, other: _Answers, locations: Sequence[str]) -> Disagreement:
    only = [np.flatnonzero(one.right & ~other.right), np.flatnonzero(~one.right & other.right)]
    pictures = _Reader(locations)
    examples = [
        [
            Example(wrong.names[at], pictures.read(wrong.names[at]), wrong.truths[at], wrong.said[at])
            for at in _spread(places)
        ]
        for places, wrong in zip(only, (other, one), strict=True)
    ]
    return Disagreement(evaluator, data, len(only[0]), len(only[1]), examples[0], examples[1], pictures.problem)


class _Reader:
    """Reads pictures again, and remembers why that failed."""

    def __init__(self, locations: Sequence[str]):
        self._locations = locations
        self.problem = ""

    def read(self, name: str) -> str | None:
        """A thumbnail; None if the picture cannot be read at any of the locations."""
        if not self._locations:
            self.problem = "the results do not say where its pictures are, as those of earlier versions; evaluate again"
        problem = self.problem
        for location in self._locations:
            try:
                return thumbnail(picture_named(location, name))
            except (UserError, PictureError, OSError) as error:
                problem = str(error)
        self.problem = problem
        return None


def _spread(places: Array) -> list[int]:
    if len(places) > MOST_EXAMPLES:
        places = places[np.linspace(0, len(places) - 1, MOST_EXAMPLES).astype(np.int64)]
    return [int(place) for place in places]
