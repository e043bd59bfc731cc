"""The first batch as the model sees it, for a person to look at before a week of training."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw

from diptych.data.batch import Batch
from diptych.data.tokenizer import Tokenizer
from diptych.terminal import printable
from diptych.training.typeface import Typeface

COLUMNS, ROWS, CELL, TEXT_LINES, MARGIN = 6, 4, 168, 3, 12
LETTER_SIZE, LINE_HEIGHT = 11, 15


def draw_samples(batch: Batch, tokenizer: Tokenizer, path: Path) -> None:
    """A PNG of the batch's first rows: the pixels after augmentation, under each what the tokens say.

    The captions stand whole in a .txt beside it, numbered from left to right and from top to bottom.
    """
    captions = [
        printable(tokenizer.decode(tokens[1 : length - 1].tolist()))
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
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for number, caption in enumerate(captions):
        left, top = number % COLUMNS * width + MARGIN, number // COLUMNS * height + MARGIN
        picture = Image.fromarray(batch.images[number].permute(1, 2, 0).numpy())
        sheet.paste(picture.resize((CELL, CELL), Image.Resampling.NEAREST), (left, top))
        _write(draw, typeface, (left, top + CELL), typeface.wrap(caption, CELL, TEXT_LINES))
    _write(draw, typeface, (MARGIN, num_rows * height + MARGIN), note_lines)
    sheet.save(path)


def _write(draw: ImageDraw.ImageDraw, typeface: Typeface, corner: tuple[int, int], lines: list[str]) -> None:
    left, top = corner
    for number, line in enumerate(lines, start=1):
        typeface.draw(draw, (left, top + number * LINE_HEIGHT - 1), line)
