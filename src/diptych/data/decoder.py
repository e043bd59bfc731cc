"""Decode a sample into a row of a batch: picture augmented, caption chosen; or the reason why it is rejected."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from diptych.config.schema import DataConfig, ImageTowerConfig
from diptych.data.augment import augment
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
    """Turns a sample's encoded members into a Row, for one data config and image tower."""

    def __init__(self, config: DataConfig, image: ImageTowerConfig, seed: int, mixture: Mixture | None = None):
        self._config = config
        self._image = image
        self.image_size = image.image_size
        self._seed = seed
        self._mixture = mixture

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
            pixels = open_pixels(members[suffix])
        except PictureError as error:
            return row(reason=error.reason.value)
        return row(image=self._augmented(pixels, picked), caption=caption)

    def caption(self, members: dict[str, Any], picked: Picked) -> str:
        """Choose one of a picture's captions by seed, epoch and sample, so that each epoch may use another one."""
        fields = self._mixture.captions_of(picked.sample) if self._mixture is not None else None
        if fields is not None:
            return drawn_caption(members, fields, Draws(hash_of(picked.sample, self._seed, picked.epoch, 4)))
        caption = caption_of(members)
        several = all_captions(caption, members.get("json", b"")) or (caption,)
        return several[hash_of(picked.sample, self._seed, picked.epoch, 3) % len(several)]

    def _augmented(self, pixels: np.ndarray, picked: Picked) -> np.ndarray:
        """Augment at random by seed, epoch and sample: the same on any rank and after any resume."""
        draws = Draws(hash_of(picked.sample, self._seed, picked.epoch, 1))
        return augment(pixels, self._config, self._image, draws)
