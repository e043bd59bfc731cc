"""Draw text in any script for which this machine has a font, wrapped to a width."""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import matplotlib
import regex
from matplotlib.font_manager import findSystemFonts
from matplotlib.ft2font import FT2Font
from PIL import ImageDraw, ImageFont

# DejaVu comes with matplotlib and covers more scripts than Pillow's own font, but not those of East Asia.
DEJAVU = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"


class Typeface:
    """DejaVu, and for characters that it lacks the first system fonts that have them.

    missing: characters of the texts that no font has; each is drawn as a box.
    """

    def __init__(self, texts: Iterable[str], size: int, system_fonts: Sequence[Path] | None = None):
        self.missing = {character for text in texts for character in text if _is_seen(character)}
        self._fonts: list[ImageFont.FreeTypeFont] = []
        self._letters: list[frozenset[str]] = []
        for path in itertools.chain([DEJAVU], _plain_first(system_fonts)):
            if self._fonts and not self.missing:
                break
            self._add(path, size)

    def width(self, text: str) -> float:
        """The width of the text in pixels."""
        return sum(font.getlength(run) for font, run in self._runs(text))

    def wrap(self, text: str, width: float, max_lines: int) -> list[str]:
        """The text's words on lines no wider than `width`; if they need more than `max_lines`, the last ends in `…`."""
        lines = [""]
        for word in text.split():
            extended = f"{lines[-1]} {word}".lstrip()
            if self.width(extended) <= width:
                lines[-1] = extended
            else:
                lines += self._broken(word, width)
        lines = [line for line in lines if line]
        if len(lines) <= max_lines:
            return lines
        *kept, last = lines[:max_lines]
        letters = _letters_of(last)
        while letters and self.width("".join(letters) + "…") > width:
            letters.pop()
        return [*kept, "".join(letters) + "…"]

    def draw(self, draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str) -> None:
        """Draw one line; `place` is the left end of its baseline."""
        left, baseline = place
        for font, run in self._runs(text):
            draw.text((left, baseline), run, fill="black", font=font, anchor="ls")
            left += font.getlength(run)

    def _add(self, path: Path, size: int) -> None:
        """Add the font if it is the first, or has some of the missing characters."""
        try:
            letters = frozenset(map(chr, FT2Font(str(path)).get_charmap()))
            if not self._fonts or self.missing & letters:
                self._fonts.append(ImageFont.truetype(str(path), size))
                self._letters.append(letters)
                self.missing -= letters
        except (OSError, RuntimeError):  # a bitmap font, or a damaged file
            pass

    def _runs(self, text: str) -> Iterator[tuple[ImageFont.FreeTypeFont, str]]:
        """Split the text into pieces that are drawn in one font each."""
        for font, letters in itertools.groupby(_letters_of(text), self._font_of):
            yield self._fonts[font], "".join(letters)

    def _font_of(self, letter: str) -> int:
        return next((number for number, known in enumerate(self._letters) if letter[0] in known), 0)

    def _broken(self, word: str, width: float) -> list[str]:
        """Break a word that is too wide between letters."""
        pieces = [""]
        for letter in _letters_of(word):
            if pieces[-1] and self.width(pieces[-1] + letter) > width:
                pieces.append("")
            pieces[-1] += letter
        return pieces


def _letters_of(text: str) -> list[str]:
    """What a reader takes for one letter each: a character with its marks."""
    letters: list[str] = regex.findall(r"\X", text)
    return letters


def _is_seen(character: str) -> bool:
    return not character.isspace() and unicodedata.category(character) not in ("Cc", "Cf", "Mn")


def _plain_first(paths: Sequence[Path] | None) -> Iterator[Path]:
    found = paths if paths is not None else map(Path, findSystemFonts())
    yield from sorted(found, key=lambda path: (any(cut in path.name for cut in ("Bold", "Italic", "Thin")), path.name))
