"""Texts as arrays that `numpy.load` reads without pickle, and that one long text does not make huge."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diptych.evaluation.similarity import Array

SMALL_BYTES = 64 << 20
MOST_PADDING = 8
"""An array gives each text as many bytes as the longest has: where that is more than this many times their own, they
are stored as UTF-8."""


def text_arrays(name: str, texts: Sequence[str]) -> dict[str, Array]:
    """`{name}`: the texts; or, where they are many and one is much longer than the others, `{name}_utf8` and `_ends`.

    These are u8: the UTF-8 of all texts, and i64: where each of them ends in it.
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
