"""Draw the first batch as the model sees it, to be checked by eye before a week of training."""

from __future__ import annotations

import json
import re
from pathlib import Path

from PIL import Image, ImageDraw

from diptych.data.batch import Batch
from diptych.data.tokenizer import Tokenizer
from diptych.pages.thumbnail import thumbnail_uri
from diptych.terminal import printable
from diptych.training.typeface import Typeface

COLUMNS, ROWS, CELL, TEXT_LINES, MARGIN = 6, 4, 168, 3, 12
LETTER_SIZE, LINE_HEIGHT = 11, 15
_CLOSED_UP = [
    (re.compile(pattern), closed)
    for pattern, closed in (
        (r"(?<=\d) (?=\d)", ""),
        (r" ([,.;:!?%…)\]}’”]+)(?= |$)", r"\1"),
        (r"(?<=\d)([.,:]) (?=\d)", r"\1"),
        (r"(^| )([(\[{“‘#$€£@]+) ", r"\1\2"),
        (r" (['’](?:s|t|re|ve|m|ll|d))\b", r"\1"),
        (r"(?<=\w) ([-/_–]) (?=\w)", r"\1"),
    )
]


def draw_samples(batch: Batch, tokenizer: Tokenizer, path: Path) -> None:
    """Draw the batch's first rows as a PNG: the pixels after augmentation, and below each the decoded tokens.

    Also writes a .txt with the whole captions, numbered from left to right and from top to bottom, and a .json for the
    report: [{`picture`: data URI, `caption`}].
    """
    captions = [
        printable(joined(tokenizer.decode(tokens[1 : length - 1].tolist())))
        for tokens, length in zip(batch.tokens[: COLUMNS * ROWS], batch.lengths.tolist(), strict=False)
    ]
    numbered = "".join(f"{number:2}  {caption}\n" for number, caption in enumerate(captions, start=1))
    path.with_suffix(".txt").write_text(numbered, encoding="utf-8")

    typeface = Typeface(captions, LETTER_SIZE)
    note = ""
    if typeface.missing:
        note = f"A box stands for a letter that no font on this machine has; {path.stem}.txt has the captions."
    width, height = CELL + MARGIN, CELL + TEXT_LINES * LINE_HEIGHT + MARGIN
    num_rows = -(-len(captions) // COLUMNS)
    note_lines = typeface.wrap(note, min(len(captions), COLUMNS) * width - MARGIN, 10)
    size = (
        min(len(captions), COLUMNS) * width + MARGIN,
        num_rows * height + MARGIN + (len(note_lines) * LINE_HEIGHT + MARGIN if note else 0),
    )
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in batch.images[: len(captions)]]
    shown = [{"picture": thumbnail_uri(p, CELL), "caption": c} for p, c in zip(pictures, captions, strict=True)]
    path.with_suffix(".json").write_text(json.dumps(shown), encoding="utf-8")
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for number, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        left, top = number % COLUMNS * width + MARGIN, number // COLUMNS * height + MARGIN
        sheet.paste(picture.resize((CELL, CELL), Image.Resampling.NEAREST), (left, top))
        _write(draw, typeface, (left, top + CELL), typeface.wrap(caption, CELL, TEXT_LINES))
    _write(draw, typeface, (MARGIN, num_rows * height + MARGIN), note_lines)
    sheet.save(path)


def joined(pieces: str) -> str:
    """Remove the spaces that a tokenizer puts between pieces where people write none.

    That is before punctuation, inside brackets, between digits, and on both sides of a hyphen.
    """
    for pattern, closed in _CLOSED_UP:
        pieces = pattern.sub(closed, pieces)
    return pieces


def _write(draw: ImageDraw.ImageDraw, typeface: Typeface, corner: tuple[int, int], lines: list[str]) -> None:
    left, top = corner
    for number, line in enumerate(lines, start=1):
        typeface.draw(draw, (left, top + number * LINE_HEIGHT - 1), line)
