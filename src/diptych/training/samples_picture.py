"""The first batch as the model sees it, for a person to look at before a week of training."""

from __future__ import annotations

import textwrap
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from diptych.data.batch import Batch
from diptych.data.tokenizer import Tokenizer

COLUMNS, ROWS, CELL, TEXT_LINES, MARGIN = 6, 4, 168, 3, 12
LINE_HEIGHT = 15


def draw_samples(batch: Batch, tokenizer: Tokenizer, path: Path) -> None:
    """A PNG of the batch's first rows: the pixels after augmentation, under each what the tokens say."""
    # DejaVu comes with matplotlib and knows more scripts than Pillow's own font.
    font = ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), 11)
    num_shown = min(len(batch.images), COLUMNS * ROWS)
    width, height = CELL + MARGIN, CELL + TEXT_LINES * LINE_HEIGHT + MARGIN
    num_rows = -(-num_shown // COLUMNS)
    sheet = Image.new("RGB", (min(num_shown, COLUMNS) * width + MARGIN, num_rows * height + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    for number in range(num_shown):
        left, top = number % COLUMNS * width + MARGIN, number // COLUMNS * height + MARGIN
        picture = Image.fromarray(batch.images[number].permute(1, 2, 0).numpy())
        sheet.paste(picture.resize((CELL, CELL), Image.Resampling.NEAREST), (left, top))
        length = int(batch.lengths[number])
        caption = tokenizer.decode(batch.tokens[number, 1 : length - 1].tolist())
        lines = textwrap.wrap(caption, 26)[:TEXT_LINES]
        draw.multiline_text((left, top + CELL + 2), "\n".join(lines), fill="black", font=font, spacing=2)
    sheet.save(path)
