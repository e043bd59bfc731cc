"""Write a page of samples as the model sees them next to the originals; it loads and runs nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from diptych.config.schema import RunConfig
from diptych.config.values import config_to_dict, flatten
from diptych.data.picture_pixels import open_pixels
from diptych.data.picture_safety import PictureError
from diptych.data.tokenizer import Tokenizer
from diptych.inspection.look import Look
from diptych.inspection.samples import SeenSample
from diptych.inspection.statistics import Statistics
from diptych.pages.axes import short_size
from diptych.pages.charts import BarChart
from diptych.pages.histograms import length_histogram, ratio_histogram, side_histogram
from diptych.pages.template import template
from diptych.pages.thumbnail import thumbnail_uri

_THUMBNAIL_SIDE = 320
"""Pixels of the longer side: about twice the size on the page, for screens of high density."""
_SETTINGS = ("tokenizer.vocabulary", "model.image.image_size", "model.text.context_length", "training.seed")
_SETTINGS_OF_LOADING = ("data.cache.", "data.shuffle_window", "data.streams", "data.max_rejected_fraction")
_CAPTION_LENGTH = 600
_NAME_LENGTH = 160
_MOST_CUT_TOKENS = 12
"""How many of the tokens that do not fit are shown."""
_MOST_TOKENS_OF_A_LETTER = 4
"""Tokens are bytes or more, and a letter has at most this many bytes in UTF-8."""


@dataclass(frozen=True)
class Piece:
    """A token as it is read, or a few that only together make whole letters."""

    text: str
    ends_word: bool
    is_cut: bool
    """Whether the caption is longer than the context, and this part of it is not seen."""


@dataclass(frozen=True)
class Card:
    """A sample on the page."""

    original: str | None
    seen: str | None
    """Both are data: URIs; None if there is no picture, or none that decodes."""
    caption: str
    pieces: tuple[Piece, ...]
    num_tokens: int
    """Of the whole caption, with start and end."""
    is_cut: bool
    num_left_out: int
    """Tokens after the cut that `pieces` leaves out."""
    about: str
    name: str
    reason: str | None


def render_preview(look: Look, config: RunConfig) -> bytes:
    """Render the page; equal shards, configs and seeds give equal pages."""
    statistics = look.statistics
    context_length = config.model.text.context_length
    page = template("diptych", "inspection/page.html.jinja").render(
        title=look.title,
        statistics=statistics,
        size=short_size(statistics.num_bytes),
        image_size=config.model.image.image_size,
        is_pixelated=config.model.image.image_size < _THUMBNAIL_SIDE / 2,
        context_length=context_length,
        num_rejected=sum(statistics.rejected.values()),
        charts=charts(statistics),
        shown=[_card(each, look.tokenizer, context_length) for each in look.shown],
        rejected=[_card(each, look.tokenizer, context_length) for each in look.rejected],
        caption_length=_CAPTION_LENGTH,
        name_length=_NAME_LENGTH,
        settings=_settings(config),
    )
    return page.encode("utf-8", "backslashreplace")


def charts(statistics: Statistics) -> list[BarChart]:
    """Histograms of all that differs among the drawn samples."""
    drawn = {
        side_histogram("Shorter side", statistics.shorter_side): statistics.shorter_side,
        ratio_histogram("Width to height", statistics.ratio): statistics.ratio,
        length_histogram("Picture file", "kB", statistics.picture_kb): statistics.picture_kb,
        length_histogram("Caption", "tokens", statistics.tokens): statistics.tokens,
    }
    return [chart for chart, tally in drawn.items() if chart is not None and tally.num_different > 1]


def pieces(tokens: tuple[int, ...], tokenizer: Tokenizer, context_length: int) -> Iterator[Piece]:
    """The decoded tokens of a caption, the first of which fit the context with start and end."""
    room = context_length - 2
    begin = 0
    for end in range(1, min(len(tokens), context_length + _MOST_CUT_TOKENS) + 1):
        text = tokenizer.decode([*tokens[begin:end]])
        if "\ufffd" in text and end - begin < _MOST_TOKENS_OF_A_LETTER and end < len(tokens):
            continue
        yield Piece(text, tokenizer.ends_word(tokens[end - 1]), begin >= room)
        begin = end


def _card(seen: SeenSample, tokenizer: Tokenizer, context_length: int) -> Card:
    row = seen.row
    facts = [
        "" if seen.size is None else f"{seen.size[0]:,} × {seen.size[1]:,}",
        seen.format or "",
        "" if seen.picture is None else short_size(len(seen.picture)),
    ]
    num_tokens = len(seen.tokens) + 2
    return Card(
        _original(seen.picture),
        None if row.image is None else _uri(np.moveaxis(row.image, 0, 2)),
        row.caption or seen.caption,
        tuple(pieces(seen.tokens, tokenizer, context_length)),
        num_tokens,
        num_tokens > context_length,
        max(len(seen.tokens) - context_length - _MOST_CUT_TOKENS, 0),
        " · ".join(fact.replace(" ", "\N{NO-BREAK SPACE}") for fact in facts if fact),
        f"{row.shard}/{row.key}",
        row.reason,
    )


def _original(picture: bytes | None) -> str | None:
    if picture is None:
        return None
    try:
        return _uri(open_pixels(picture))
    except PictureError:
        return None


def _uri(pixels: np.ndarray) -> str:
    return thumbnail_uri(Image.fromarray(np.ascontiguousarray(pixels)), _THUMBNAIL_SIDE)


def _settings(config: RunConfig) -> list[tuple[str, str]]:
    """The settings that decide how a sample is seen."""
    return [
        (key, str(value))
        for key, value in flatten(config_to_dict(config))
        if key in _SETTINGS or (key.startswith("data.") and not key.startswith(_SETTINGS_OF_LOADING))
    ]
