"""Classify pictures by a model that predicts words: a class is as likely as the words of its prompts."""

from __future__ import annotations

from typing import Any

import numpy as np

from diptych.evaluation.prompts import Prompts, texts_of
from diptych.evaluation.similarity import Array

PICTURES_AT_ONCE = 64


class WordClassifier:
    """Scores classes for the features of pictures; a class's score is the mean over its prompts.

    encoder: an `Encoder` of words, whose `scores(features, texts)` gives f32[pictures texts].
    """

    def __init__(self, encoder: Any, prompts: Prompts):
        self._encoder = encoder
        numbers, self._texts = zip(*texts_of(prompts.classes, prompts.templates), strict=True)
        self._starts = np.searchsorted(numbers, np.arange(len(prompts.classes)))
        self._sizes = np.bincount(numbers)

    def __len__(self) -> int:
        return len(self._sizes)

    def scores(self, features: Array) -> Array:
        """f32[pictures classes] of features f32[pictures width]."""
        parts = [
            self._encoder.scores(features[first : first + PICTURES_AT_ONCE], self._texts)
            for first in range(0, len(features), PICTURES_AT_ONCE)
        ]
        sums: Array = np.add.reduceat(np.concatenate(parts), self._starts, axis=1)
        return (sums / self._sizes).astype(np.float32)
