"""The rules that drop captions. A rule is a function and a line in RULES; the first that applies is the reason.

Rules get captions that `clean_caption` has cleaned, before anything is known of the picture.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import regex

from diptych_shards.curate.blocking import BOILERPLATE, BOILERPLATE_BEGINNINGS, PhraseList, words_of


@dataclass(frozen=True, kw_only=True)
class CaptionLimits:
    """The limits that rules apply."""

    min_characters: int = 3
    """Counted by `num_characters`; DataComp's basic filter asks for 6, and for 3 words."""
    max_characters: int = 1_000
    """Counted as they are, in any script."""
    min_words: int = 1
    """Counted by `num_words`."""
    blocked: PhraseList = PhraseList()


def first_broken(caption: str, limits: CaptionLimits, rules: dict[str, Rule]) -> str | None:
    """The name of the first rule that the caption breaks."""
    return next((name for name, breaks in rules.items() if breaks(caption, limits)), None)


def is_empty(caption: str, limits: CaptionLimits) -> bool:
    return not caption


CHARACTERS_PER_DENSE_LETTER = 3
_DENSE_LETTER = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}]")
_WORD = regex.compile(
    r"\p{Han}"  # a word of Chinese has 1.5 to 2, but many have one
    r"|[\p{Katakana}ー]+|\p{Hiragana}+"  # Japanese changes between these scripts, and to Han, at the end of a word
    r"|[\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]{1,4}"  # with their vowel signs; a word of Thai has 3 to 4
    r"|[^\s\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\u3000-\u303f\uff00-\uff0f]+"
)


def num_characters(caption: str) -> int:
    """The length of a caption; a letter of Chinese, Japanese or Korean counts as three: 猫 means `cat`."""
    if caption.isascii():
        return len(caption)
    return len(caption) + (CHARACTERS_PER_DENSE_LETTER - 1) * len(_DENSE_LETTER.findall(caption))


def num_words(caption: str) -> int:
    """Count the words between spaces; estimate them in Chinese, Japanese, Thai, Lao, Khmer and Burmese."""
    return caption.count(" ") + 1 if caption.isascii() else len(_WORD.findall(caption))


def is_too_short(caption: str, limits: CaptionLimits) -> bool:
    return num_characters(caption) < limits.min_characters or num_words(caption) < limits.min_words


def is_too_long(caption: str, limits: CaptionLimits) -> bool:
    return len(caption) > limits.max_characters


_RUN = re.compile(r"([^\W\d])\1{5}")


def is_repetition(caption: str, limits: CaptionLimits) -> bool:
    """A letter six times in a row, or words that are mostly repetitions."""
    if _RUN.search(caption):
        return True
    words = caption.casefold().split(" ")
    if len(words) < 6:
        return False
    counts = Counter(words)
    return max(counts.values()) > len(words) / 2 or (len(words) >= 12 and len(counts) < len(words) * 0.3)


_TYPE_NAME = re.compile(r"[^\W\d_]+[ -]?\d{1,4}[^\W\d_]*")


def has_few_letters(caption: str, limits: CaptionLimits) -> bool:
    """Mostly numbers and signs; not the name of a type, such as P-51 or A380."""
    if _TYPE_NAME.fullmatch(caption):
        return False
    letters = sum(map(str.isalpha, caption))
    # Vowel signs of Indic scripts, up to half of a word, are no letters in Unicode.
    return letters < 0.3 * (len(caption) - caption.count(" "))


_SUFFIX = r"\.(?:jpe?g|png|gif|webp|bmp|tiff?|svg|avif|heic|raw|psd|pdf)"
_FILE_NAME = re.compile(
    rf"\S*{_SUFFIX}(?:\?\S*)?"  # one word with the suffix of a picture
    r"|(?:img|dsc[nf]?|dscf|pxl|mvimg|fb_img|gopr|dji|vid|wp|sam|cimg|imag|pict)[ _-]?\d{4,}[\d_ ().-]{0,40}"
    r"|p\d{6,}"  # names that cameras and telephones give: IMG_2041, DSC00123, PXL_20210304_112233, P1010023
    r"|(?:image|img|picture|pic|photo|scan|screenshot|untitled)[_-]?\d+(?:[_-]\d+)*"  # no space: image001, photo-3
    r"|(?:image|img|picture|pic|photo|scan|screen ?shot|untitled) ?\(\d+\)"  # a second file of that name
    r"|(?:screen ?shot|whatsapp image|photo|image|scan)[ _-]\d{4}-?\d\d-?\d\d\b[\d_ ().:-]{0,20}"
    r"(?:at [\d.: -]{1,20})?(?:[ap]m)?"  # and a date
    rf"(?:{_SUFFIX})?"
    r"|[0-9a-f]{16,}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}",  # a hash, a UUID
    re.IGNORECASE,
)
_DIGIT = re.compile(r"\d")


def is_file_name(caption: str, limits: CaptionLimits) -> bool:
    """The name of a file. A word and a number are none (P-51, Photo 51); a word with an underscore and a digit is."""
    if " " not in caption and "_" in caption and _DIGIT.search(caption):
        return True
    return _FILE_NAME.fullmatch(caption) is not None


_ADDRESS = re.compile(
    r"(?:https?://|www\.)\S+"
    r"|[\w.+-]+@[\w-]+(?:\.[\w-]+)+"
    r"|[\w-]+(?:\.[\w-]+)*\.(?:com|net|org|info|de|co\.uk|ru|cn)(?:/\S*)?",
    re.IGNORECASE,
)


def is_address(caption: str, limits: CaptionLimits) -> bool:
    """An address of the web or of mail, and nothing else."""
    return _ADDRESS.fullmatch(caption) is not None


_MARKUP = re.compile(
    r"</?[a-z][a-z0-9]*[ />]|<!--|\{\{|\}\}|\$\{|\[/?caption\b|function ?\(|&[a-z]{2,8};|%[0-9a-f]{2}%[0-9a-f]{2}",
    re.IGNORECASE,
)


def is_markup(caption: str, limits: CaptionLimits) -> bool:
    """Pieces of HTML, templates or scripts."""
    return _MARKUP.search(caption) is not None


def is_boilerplate(caption: str, limits: CaptionLimits) -> bool:
    """A caption that says that there is a picture, not what it shows."""
    words = words_of(caption)
    return words in BOILERPLATE or words.startswith(BOILERPLATE_BEGINNINGS)


def is_blocked(caption: str, limits: CaptionLimits) -> bool:
    return limits.blocked.is_in(caption)


Rule = Callable[[str, CaptionLimits], bool]

RULES: dict[str, Rule] = {
    "empty": is_empty,
    "too_short": is_too_short,
    "too_long": is_too_long,
    "file_name": is_file_name,
    "address": is_address,
    "markup": is_markup,
    "boilerplate": is_boilerplate,
    "few_letters": has_few_letters,
    "repetition": is_repetition,
    "blocked_phrase": is_blocked,
}

KEPT = "kept"
REASONS = (
    KEPT,
    "no_url",
    "blocked_host",
    *RULES,
    "no_query",
    "language",
    "exact_duplicate",
    "near_duplicate",
    "balanced_away",
)
"""The reason of a pair is stored as its place in this table."""
CODES = {reason: code for code, reason in enumerate(REASONS)}
MEANINGS = {
    "kept": "stays",
    "no_url": "its address is not on the web (http, https)",
    "blocked_host": "its address is on a list of hosts",
    "empty": "it has no caption",
    "too_short": "its caption has too few characters or words",
    "too_long": "its caption has too many characters",
    "file_name": "its caption is the name of a file",
    "address": "its caption is an address of the web or of mail",
    "markup": "its caption contains pieces of HTML, templates or scripts",
    "boilerplate": "its caption says that there is a picture, not what it shows",
    "few_letters": "its caption is mostly numbers and signs",
    "repetition": "its caption repeats itself",
    "blocked_phrase": "its caption contains a phrase of a list",
    "no_query": "its caption contains no query",
    "language": "its language is not one of those to keep",
    "exact_duplicate": "another pair has the same address and the same caption",
    "near_duplicate": "another pair most likely has the same picture, and nearly the same caption",
    "balanced_away": "its queries have more pairs than they keep",
}
