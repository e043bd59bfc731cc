"""Text that nobody vouches for, made fit to be looked at: what would not show, or would reorder its surroundings, does."""

from __future__ import annotations

import unicodedata

_JOINERS = "\u200c\u200d"
"""Without them emoji and several scripts fall apart; they do nothing to their surroundings."""


def visible(text: object, length: int | None = None) -> str:
    """The text on one line, cut to `length` characters.

    Control characters become their pictures (␛, ␊); bidirectional controls, lone surrogates and all else without a
    look of its own ⟨U+202E⟩.
    """
    string = str(text)
    cut = string if length is None or len(string) <= length else f"{string[: length - 1]}…"
    return cut if cut.isprintable() else "".join(map(_visible, cut))


def _visible(char: str) -> str:
    if char.isprintable() or char in _JOINERS or unicodedata.category(char) == "Zs":
        return char
    if char < " ":
        return chr(0x2400 + ord(char))
    return "\u2421" if char == "\x7f" else f"⟨U+{ord(char):04X}⟩"
