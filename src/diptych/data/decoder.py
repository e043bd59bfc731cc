"""Decode a sample into a row of a batch: picture augmented, caption chosen; or the reason why it is rejected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from diptych.config.schema import DataConfig, ImageTowerConfig
from diptych.config.stages import Stage, stage_at
from diptych.data.augment import augment, drawn_box
from diptych.data.captions import all_captions, caption_of, drawn_caption
from diptych.data.draws import Draws, hash_of
from diptych.data.mixture import Mixture
from diptych.data.picture_pixels import open_pixels
from diptych.data.picture_safety import PictureError, PictureReason
from diptych.data.shard_index_file import PICTURE_SUFFIXES

REASONS = ("damaged_shard", "no_caption", "no_picture", *(reason.value for reason in PictureReason))
"""The reasons for which a sample can be rejected."""


@dataclass(frozen=True)
class Picked:
    """A sample's place in the run: its number in the index, the epoch, and the batch."""

    sample: int
    epoch: int
    batch_number: int


@dataclass(frozen=True)
class Row:
    """A decoded sample; a rejected one has a `reason` instead of content."""

    picked: Picked
    key: str
    shard: str
    image: np.ndarray | None = None
    caption: str = ""
    reason: str | None = None


class Decoder:
    """Turns a sample's encoded members into a Row, for one data config and image tower.

    stages: those of the run, if pictures or captions do not have the model's sizes in all of it.
    """

    def __init__(
        self,
        config: DataConfig,
        image: ImageTowerConfig,
        seed: int,
        mixture: Mixture | None = None,
        stages: Sequence[Stage] = (),
    ):
        self._config = config
        self._image = image
        self._seed = seed
        self._mixture = mixture
        self._stages = stages

    def image_of(self, batch_number: int) -> ImageTowerConfig:
        """The image tower, with the size of the pictures of this batch."""
        return stage_at(self._stages, batch_number).model.image if self._stages else self._image

    def context_length_of(self, batch_number: int) -> int | None:
        """The context length of this batch; None if it is the same in all batches."""
        return stage_at(self._stages, batch_number).model.text.context_length if self._stages else None

    def __call__(self, members: dict[str, Any]) -> Row:
        """Decode one sample; a fault of the sample becomes the row's reason, never an exception."""
        picked: Picked = members["picked"]
        row = partial(Row, picked, members["__key__"], members["__url__"])
        if "damaged" in members:
            return row(reason="damaged_shard")
        caption = self.caption(members, picked)
        if not caption:
            return row(reason="no_caption")
        suffix = next((suffix for suffix in PICTURE_SUFFIXES if suffix in members), None)
        if suffix is None:
            return row(reason="no_picture")
        try:
            pixels = self._pixels(members[suffix], picked)
        except PictureError as error:
            return row(reason=error.reason.value)
        image = augment(pixels, self._config, self.image_of(picked.batch_number), self._draws(picked))
        return row(image=image, caption=caption)

    def caption(self, members: dict[str, Any], picked: Picked) -> str:
        """Choose one of a picture's captions by seed, epoch and sample, so that each epoch may use another one."""
        fields = self._mixture.captions_of(picked.sample) if self._mixture is not None else None
        if fields is not None:
            return drawn_caption(members, fields, Draws(hash_of(picked.sample, self._seed, picked.epoch, 4)))
        caption = caption_of(members)
        several = all_captions(caption, members.get("json", b"")) or (caption,)
        return several[hash_of(picked.sample, self._seed, picked.epoch, 3) % len(several)]

    def _pixels(self, data: bytes, picked: Picked) -> np.ndarray:
        """Decode a picture; in a stage with smaller pictures than the tower's, only as large as its crop needs."""
        image = self.image_of(picked.batch_number)
        if image.image_size >= self._image.image_size:
            return open_pixels(data)

        def times_as_large(width: int, height: int) -> float:
            """How many times as large as needed the picture is, by the crop that will be drawn from it."""
            _, _, columns, rows = drawn_box(width, height, self._config, image, self._draws(picked))
            return min(columns, rows) / image.image_size

        return open_pixels(data, times_as_large=times_as_large)

    def _draws(self, picked: Picked) -> Draws:
        """The random numbers of its augmentation, by seed, epoch and sample: the same on any rank and any start."""
        return Draws(hash_of(picked.sample, self._seed, picked.epoch, 1))
