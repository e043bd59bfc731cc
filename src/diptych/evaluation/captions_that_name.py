"""Find the pictures whose captions name a label."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np

from diptych.evaluation.similarity import Array

WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_]+")
"""A word; in scripts that leave no space between words, a character."""

FUNCTION_WORDS = frozenset(
    "a an and are at by for from in is it its of on or that the these this those to with".split()
)
"""English words that carry no meaning of their own: a label is named without them too."""


class Captions:
    """Captions of pictures, by word."""

    def __init__(self, captions: Sequence[str]):
        self._number = len(captions)
        places: dict[str, list[int]] = {}
        for place, caption in enumerate(captions):
            for word in words_of(caption):
                places.setdefault(word, []).append(place)
        self._places = {word: np.array(found) for word, found in places.items()}

    def that_name(self, names: Iterable[str]) -> Array:
        """bool[captions]: whether a caption has all words of one of a label's names, in any order."""
        named = np.zeros(self._number, dtype=bool)
        for name in names:
            words = words_of(name)
            words = words - FUNCTION_WORDS or words
            if words <= self._places.keys() and words:
                found = [np.bincount(self._places[word], minlength=self._number) > 0 for word in words]
                named |= np.logical_and.reduce(found)
        return named


def words_of(text: str) -> set[str]:
    return set(WORD.findall(text.casefold()))
