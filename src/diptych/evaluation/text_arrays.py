"""Store texts as arrays that `numpy.load` reads without pickle, and that stay small even if one text is long."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diptych.evaluation.similarity import Array

SMALL_BYTES = 64 << 20
MOST_PADDING = 8
"""A numpy array gives every text the size of the longest one. If that is more than this many times the texts' own size,
they are stored as UTF-8 instead."""


def text_arrays(name: str, texts: Sequence[str]) -> dict[str, Array]:
    """Arrays for the texts: `{name}`, or `{name}_utf8` and `{name}_ends` if one text is much longer than the others.

    The former is an array of str. The latter two are the UTF-8 of all texts, u8, and the place in it where each text
    ends, i64.
    """
    lengths = [len(text) for text in texts]
    padded = 4 * len(texts) * max(lengths, default=0)
    if padded <= max(SMALL_BYTES, MOST_PADDING * 4 * sum(lengths)):
        return {name: np.array(texts, dtype=np.str_)}
    encoded = [text.encode("utf-8", "surrogateescape") for text in texts]
    return {
        f"{name}_utf8": np.frombuffer(b"".join(encoded), np.uint8),
        f"{name}_ends": np.cumsum([len(each) for each in encoded]),
    }
