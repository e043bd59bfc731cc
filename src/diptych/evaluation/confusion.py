"""What a classifier mixes up, small enough to be looked at, also where there are hundreds of classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from diptych.evaluation.similarity import Array

ARTICLES = ("a", "an", "the")
MOST_SHOWN = 24
MOST_FACTORS = 80


@dataclass(frozen=True)
class Part:
    """One of the two parts that class names are made of: its values, and the value that each class has."""

    names: tuple[str, ...]
    of_class: Array


@dataclass(frozen=True)
class Matrix:
    """Pictures by true class (rows) and predicted class (columns); the last column may be `other`."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    counts: Array


def factorise(class_names: Sequence[str]) -> tuple[Part, Part] | None:
    """The parts of names such as `a crab on a red background`; None where the classes are no such grid.

    A grid: one word stands inside of every name, and what is before and after it is combined nearly freely.
    """
    split_names = [name.split() for name in class_names]
    inside = [set(words[1:-1]) for words in split_names]
    best: tuple[int, tuple[Part, Part]] | None = None
    for word in sorted(set.intersection(*inside)) if inside else []:
        places = [words.index(word, 1) for words in split_names]
        first = _part([words[:place] for words, place in zip(split_names, places, strict=True)])
        second = _part([words[place + 1 :] for words, place in zip(split_names, places, strict=True)])
        sizes = len(first.names), len(second.names)
        cells, num_classes = sizes[0] * sizes[1], len(class_names)
        distinct = len(set(zip(first.of_class.tolist(), second.of_class.tolist(), strict=True)))
        is_grid = min(sizes) > 1 and max(sizes) <= MOST_FACTORS and cells <= 1.5 * num_classes
        if is_grid and distinct == num_classes and (best is None or cells < best[0]):
            best = cells, (first, second)
    return best[1] if best else None


def matrix_of_part(results: Sequence[Mapping[str, Any]], part: Part) -> Matrix:
    """Confusions counted over one part of the class names: right where that part is right."""
    size = len(part.names)
    counts = np.zeros((size, size), dtype=np.int64)
    for result in results:
        for each, _, right in result["per_class"]:
            counts[part.of_class[each], part.of_class[each]] += right
        for true, predicted, number in result["confusions"]:
            counts[part.of_class[true], part.of_class[predicted]] += number
    return Matrix(part.names, part.names, counts)


def matrix_of_classes(results: Sequence[Mapping[str, Any]], class_names: Sequence[str]) -> Matrix:
    """All classes where they are few, else those with the most errors and the rest as `other`."""
    errors = np.zeros(len(class_names), dtype=np.int64)
    for result in results:
        for true, predicted, number in result["confusions"]:
            errors[[true, predicted]] += number
    if len(class_names) <= MOST_SHOWN:
        shown = list(range(len(class_names)))
    else:
        shown = sorted(np.argsort(-errors, kind="stable")[:MOST_SHOWN].tolist())
    row_of = {each: place for place, each in enumerate(shown)}
    other = len(shown)
    counts = np.zeros((len(shown), len(shown) + 1), dtype=np.int64)
    for result in results:
        for each, _, right in result["per_class"]:
            if each in row_of:
                counts[row_of[each], row_of[each]] += right
        for true, predicted, number in result["confusions"]:
            if true in row_of:
                counts[row_of[true], row_of.get(predicted, other)] += number
    names = tuple(class_names[each] for each in shown)
    if not counts[:, other].any():
        return Matrix(names, names, counts[:, :other])
    return Matrix(names, (*names, "other"), counts)


def most_confused(results: Sequence[Mapping[str, Any]], most: int = 10) -> list[tuple[int, int, int]]:
    """(true class, predicted class, pictures), most frequent first."""
    totals: dict[tuple[int, int], int] = {}
    for result in results:
        for true, predicted, number in result["confusions"]:
            totals[true, predicted] = totals.get((true, predicted), 0) + number
    ordered = sorted(totals.items(), key=lambda item: -item[1])
    return [(true, predicted, number) for (true, predicted), number in ordered[:most]]


def _part(values: Sequence[Sequence[str]]) -> Part:
    bare = [words[1:] if len(words) > 1 and words[0].lower() in ARTICLES else words for words in values]
    shared = _shared_ending(bare)
    names = [" ".join(words[: len(words) - shared]) for words in bare]
    numbers: dict[str, int] = {}
    of_class = np.array([numbers.setdefault(name, len(numbers)) for name in names])
    return Part(tuple(numbers), of_class)


def _shared_ending(values: Sequence[Sequence[str]]) -> int:
    """How many words all values end with, at least one word of each left over."""
    shared = 0
    shortest = min(len(words) for words in values)
    while shared < shortest - 1 and len({words[-1 - shared] for words in values}) == 1:
        shared += 1
    return shared
