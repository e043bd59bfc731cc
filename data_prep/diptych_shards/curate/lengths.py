"""How much a caption says, in scripts that say a word with one letter or put no spaces between words, too."""

from __future__ import annotations

import regex

CHARACTERS_PER_DENSE_LETTER = 3
_DENSE_LETTER = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}]")
_WORD = regex.compile(
    r"\p{Han}"  # 1.5 to 2 make a word of Chinese, but many a word is one
    r"|[\p{Katakana}ー]+|\p{Hiragana}+"  # Japanese changes between them, and to Han, where a word ends
    r"|[\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]{1,4}"  # with their vowel signs; a word of Thai has 3 to 4
    r"|[^\s\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\u3000-\u303f\uff00-\uff0f]+"
)


def num_characters(caption: str) -> int:
    """Each letter of Chinese, Japanese and Korean counts as three: 猫 says what `cat` says."""
    if caption.isascii():
        return len(caption)
    return len(caption) + (CHARACTERS_PER_DENSE_LETTER - 1) * len(_DENSE_LETTER.findall(caption))


def num_words(caption: str) -> int:
    """Between spaces; about right where there are none: Chinese, Japanese, Thai, Lao, Khmer, Burmese."""
    return caption.count(" ") + 1 if caption.isascii() else len(_WORD.findall(caption))
