"""Confusion matrices that stay small enough to look at, even with hundreds of classes."""

from __future__ import annotations

from collections import Counter
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
    """One of the two parts that class names consist of: its values, and the number of each class's value."""

    names: tuple[str, ...]
    of_class: Array


@dataclass(frozen=True)
class Matrix:
    """Numbers of pictures by true class (rows) and predicted class (columns); the last column may be `other`."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    counts: Array


def factorise(class_names: Sequence[str]) -> tuple[Part, Part] | None:
    """Split names such as `a crab on a red background` into two parts; None if the classes do not form a grid.

    They form a grid if one word is inside every name, and nearly all combinations of what comes before and after it
    occur.
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


def whole(class_names: Sequence[str]) -> Part:
    """The class names themselves, as one part."""
    return Part(tuple(class_names), np.arange(len(class_names)))


def confusion_matrix(results: Sequence[Mapping[str, Any]], part: Part, most_shown: int = MOST_SHOWN) -> Matrix:
    """Confusions of one part of the class names; an answer counts as right if that part is right.

    If the part has more than `most_shown` values, only those with the most errors are shown, and the rest as `other`.
    """
    counts: Counter[tuple[int, int]] = Counter()
    for result in results:
        for each, _, right in result["per_class"]:
            counts[int(part.of_class[each]), int(part.of_class[each])] += right
        for shown, said, number in result["confusions"]:
            counts[int(part.of_class[shown]), int(part.of_class[said])] += number

    errors: Counter[int] = Counter()
    for (shown, said), number in counts.items():
        if shown != said:
            errors.update({shown: number, said: number})
    chosen = list(range(len(part.names)))
    if len(part.names) > most_shown:
        chosen = sorted(each for each, _ in errors.most_common(most_shown))
    row_of = {each: row for row, each in enumerate(chosen)}
    matrix = np.zeros((len(row_of), len(row_of) + 1), dtype=np.int64)
    for (shown, said), number in counts.items():
        if shown in row_of:
            matrix[row_of[shown], row_of.get(said, len(row_of))] += number
    names = tuple(part.names[each] for each in chosen)
    if not matrix[:, -1].any():
        return Matrix(names, names, matrix[:, :-1])
    return Matrix(names, (*names, "other"), matrix)


def most_confused(results: Sequence[Mapping[str, Any]], most: int = 10) -> list[tuple[int, int, int]]:
    """(true class, predicted class, number of pictures) of the most frequent errors, most frequent first."""
    counts: Counter[tuple[int, int]] = Counter()
    for result in results:
        for shown, said, number in result["confusions"]:
            counts[shown, said] += number
    return [(shown, said, number) for (shown, said), number in counts.most_common(most)]


def _part(values: Sequence[Sequence[str]]) -> Part:
    bare = [words[1:] if len(words) > 1 and words[0].lower() in ARTICLES else words for words in values]
    shared = _shared_ending(bare)
    names = [" ".join(words[: len(words) - shared]) for words in bare]
    numbers: dict[str, int] = {}
    of_class = np.array([numbers.setdefault(name, len(numbers)) for name in names])
    return Part(tuple(numbers), of_class)


def _shared_ending(values: Sequence[Sequence[str]]) -> int:
    """The number of words that all values end with, leaving at least one word of each."""
    shared = 0
    shortest = min(len(words) for words in values)
    while shared < shortest - 1 and len({words[-1 - shared] for words in values}) == 1:
        shared += 1
    return shared
