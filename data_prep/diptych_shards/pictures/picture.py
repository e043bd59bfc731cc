"""Turn a fetched picture into a stored one.

The steps: size filters (on the header), decode, resize, colour profile to sRGB, EXIF orientation, blur, crop or
padding, encode. Profile and orientation come after resizing because there are fewer pixels then; the result looks the
same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from diptych.data.exif import exif_json
from diptych.data.picture_formats import MAX_PIXELS
from diptych.data.picture_rgb import PictureFacts, as_seen
from diptych.data.picture_safety import (
    PictureError,
    PictureFile,
    PictureReason,
    too_many_pixels,
    why_not_decodable,
)
from diptych.data.shard_index_file import MAX_MEMBER_BYTES
from diptych.errors import UserError
from diptych_shards.pictures import resize as shape
from diptych_shards.pictures.blur import blur, read_boxes, upright_box
from diptych_shards.pictures.encode import DEFAULT_PNG_COMPRESSION, DEFAULT_QUALITY, ENCODINGS, encode
from diptych_shards.pictures.strip_metadata import strip_metadata

IMG2DATASET_MESSAGES = {
    PictureReason.NOT_A_PICTURE: "Image decoding error",
    PictureReason.FORMAT_NOT_ALLOWED: "Image decoding error",
    PictureReason.TOO_MANY_PIXELS: "Image decoding error",
    PictureReason.TRUNCATED: "Image decoding error",
    PictureReason.DECODE_ERROR: "Image decoding error",
    PictureReason.TOO_SMALL: "image too small",
    PictureReason.AREA_TOO_LARGE: "image area too large",
    PictureReason.ASPECT_RATIO_TOO_LARGE: "aspect ratio too large",
    PictureReason.ENCODE_ERROR: "Image encoding error",
    PictureReason.BAD_BOX: "bounding boxes not readable",
}
"""img2dataset's `error_message` for each reason, with the status `failed_to_resize`; the last two are ours."""


@dataclass(frozen=True, kw_only=True)
class PictureOptions:
    """How pictures are processed; the defaults are img2dataset's."""

    image_size: int = 256
    resize_mode: str = "border"
    resize_only_if_bigger: bool = False
    encode_format: str = "jpg"
    encode_quality: int | None = None
    """0 to 100, by default 95; for png the compression, 0 to 9, by default 6."""
    skip_reencode: bool = False
    """Keep the file's own bytes if no pixel changes, without metadata and bytes after the end."""
    min_image_size: int = 0
    max_image_area: float = math.inf
    max_aspect_ratio: float = math.inf
    max_pixels: int = MAX_PIXELS
    read_exif: bool = True
    """Return EXIF as a JSON string."""

    def __post_init__(self) -> None:
        highest = 9 if self.encode_format == "png" else 100
        for name, value, allowed in (
            ("resize_mode", self.resize_mode, shape.RESIZE_MODES),
            ("encode_format", self.encode_format, ENCODINGS),
        ):
            if value not in allowed:
                raise UserError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")
        for limit, least in (
            ("image_size", 1),
            ("min_image_size", 0),
            ("max_image_area", 1),
            ("max_aspect_ratio", 1),
            ("max_pixels", 1),
        ):
            if not getattr(self, limit) >= least:  # refuses NaN too
                raise UserError(f"{limit} is {getattr(self, limit)}; it must be at least {least}")
        if self.encode_quality is not None and not 0 <= self.encode_quality <= highest:
            raise UserError(
                f"encode_quality is {self.encode_quality}; it must be 0 to {highest} for {self.encode_format}"
            )
        if self.max_pixels > MAX_PIXELS:
            raise UserError(f"max_pixels is {self.max_pixels}; it must be at most {MAX_PIXELS}: training reads no more")
        if missing := why_not_decodable(ENCODINGS[self.encode_format]):
            raise UserError(f"encode_format {self.encode_format}: {missing}")

    @property
    def quality(self) -> int:
        default = DEFAULT_PNG_COMPRESSION if self.encode_format == "png" else DEFAULT_QUALITY
        return default if self.encode_quality is None else self.encode_quality


def for_training(size: int) -> PictureOptions:
    """Options for pictures that training need not resize: shorter side `size`, baseline 4:2:0 JPEG of quality 90."""
    return PictureOptions(image_size=size, resize_mode="keep_ratio", encode_format="jpg", encode_quality=90)


@dataclass(frozen=True)
class StoredPicture:
    """A picture ready for its shard."""

    data: bytes
    suffix: str
    width: int
    height: int
    original_width: int
    """Upright, like all sizes here."""
    original_height: int
    exif: str | None
    """JSON as img2dataset writes it, `{}` if there is no EXIF; None if it was not asked for."""


def process_picture(
    data: bytes, options: PictureOptions, boxes: Sequence[Sequence[Any]] | None = None
) -> StoredPicture:
    """Process a picture as the options say.

    boxes: to be blurred; (left, top, right, bottom) as fractions of the picture as the file stores it. They turn with
    its EXIF orientation.

    Raises:
        PictureError: if the picture is refused, with the reason.
    """
    file = PictureFile(data, max_pixels=options.max_pixels)
    size = file.width, file.height
    _filter(size, options)
    resized = _resized_size(size, options)
    to_blur = read_boxes(boxes) if boxes else []

    picture, facts = file.decode(resized)
    if resized is not None:
        picture = shape.resize(picture, resized, facts.covered)
    picture = as_seen(picture, facts)
    if to_blur:
        picture = blur(picture, [upright_box(box, facts.orientation) for box in to_blur])
    if resized is not None and options.resize_mode == "center_crop":
        picture = shape.crop_to_square(picture, options.image_size)
    if resized is not None and options.resize_mode == "border":
        picture = shape.pad_to_square(picture, options.image_size)

    is_unchanged = picture.size == size and not to_blur and _is_stored_as_seen(facts)
    stored = _own_bytes(data, file.format, options.encode_format) if options.skip_reencode and is_unchanged else None
    if stored is None:
        stored = encode(picture, options.encode_format, options.quality)
    if len(stored) > MAX_MEMBER_BYTES:
        detail = f"{len(stored)} bytes as {options.encode_format}; at most {MAX_MEMBER_BYTES}"
        raise PictureError(PictureReason.ENCODE_ERROR, detail)
    original_width, original_height = size if facts.orientation < 5 else size[::-1]
    return StoredPicture(
        data=stored,
        suffix=options.encode_format,
        width=picture.width,
        height=picture.height,
        original_width=original_width,
        original_height=original_height,
        exif=exif_json(facts.exif) if options.read_exif else None,
    )


def _filter(size: shape.Size, options: PictureOptions) -> None:
    shorter, longer = sorted(size)
    if shorter < max(options.min_image_size, 1):
        detail = f"{size[0]} x {size[1]} pixels; at least {options.min_image_size} a side"
        raise PictureError(PictureReason.TOO_SMALL, detail)
    if shorter * longer > options.max_image_area:
        detail = f"{size[0]} x {size[1]} pixels; at most {options.max_image_area}"
        raise PictureError(PictureReason.AREA_TOO_LARGE, detail)
    if longer / shorter > options.max_aspect_ratio:
        detail = f"{size[0]} x {size[1]} pixels; at most {options.max_aspect_ratio} to 1"
        raise PictureError(PictureReason.ASPECT_RATIO_TOO_LARGE, detail)


def _resized_size(size: shape.Size, options: PictureOptions) -> shape.Size | None:
    resized = shape.resized_size(
        size, options.resize_mode, options.image_size, only_if_bigger=options.resize_only_if_bigger
    )
    if resized is None:
        return None
    if min(resized) == 0:
        detail = f"{size[0]} x {size[1]} pixels; a side would become {resized[0]} x {resized[1]}"
        raise PictureError(PictureReason.TOO_SMALL, detail)
    # A narrow picture can become very long if its shorter side is enlarged.
    largest = (options.image_size,) * 2 if options.resize_mode == "border" else resized
    if math.prod(largest) > MAX_PIXELS:
        raise too_many_pixels(*largest, MAX_PIXELS)
    return resized


def _is_stored_as_seen(facts: PictureFacts) -> bool:
    return facts.is_plain and facts.profile is None and facts.orientation == 1


def _own_bytes(data: bytes, format: str, suffix: str) -> bytes | None:
    """The file as it came, without metadata; None if it has another format or a flaw that other readers refuse."""
    return strip_metadata(data, format) if format == ENCODINGS[suffix] else None
