"""Text that nobody vouches for, made fit to be looked at: nothing in it hides, or reorders its surroundings."""

from __future__ import annotations

import unicodedata

_PICTURES = {"\n": "↵", "\t": "⇥"}
_JOINERS = "\u200c\u200d"
"""Without them emoji and several scripts fall apart; they do nothing to their surroundings."""


def visible(text: object, length: int | None = None) -> str:
    """The text on one line, cut to `length` characters.

    A line end becomes ↵, a tab ⇥; other control characters, bidirectional ones, lone surrogates and all else without
    a look of its own become ⟨U+202E⟩.
    """
    string = str(text)
    cut = string if length is None or len(string) <= length else f"{string[: length - 1]}…"
    return cut if cut.isprintable() else "".join(map(_visible, cut))


def _visible(char: str) -> str:
    if char.isprintable() or char in _JOINERS or unicodedata.category(char) == "Zs":
        return char
    return _PICTURES.get(char) or f"⟨U+{ord(char):04X}⟩"
