"""Read and write how a checkpoint's pictures are prepared: open_clip's `preprocess_cfg` and transformers' file.

`diptych.data.preprocessing` applies the settings.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from diptych.config.schema import CLIP_MEAN, CLIP_STD, ImageTowerConfig
from diptych.documents import parse_json
from diptych.errors import UserError

HUGGING_FACE_FILE = "preprocessor_config.json"

INTERPOLATIONS = {"bicubic": "bicubic", "bilinear": "bilinear", "random": "bicubic"}
"""open_clip's name → ours; outside of training, open_clip treats `random` as bicubic."""
RESAMPLING_NAMES = {2: "bilinear", 3: "bicubic"}
"""transformers writes Pillow's numbers."""


def from_open_clip(settings: dict[str, Any], image_size: int) -> dict[str, Any]:
    """The fields of an ImageTowerConfig that a `preprocess_cfg` sets; what it leaves out has open_clip's defaults.

    Raises:
        UserError: a setting is unknown to open_clip itself, or contradicts the picture size.
    """
    settings = {key: value for key, value in settings.items() if value is not None}
    expected: dict[str, tuple[Any, ...]] = {
        "resize_mode": ("shortest", "longest", "squash"),
        "interpolation": tuple(INTERPOLATIONS),
        "mode": ("RGB",),
        "size": (image_size, [image_size, image_size]),
    }
    for key, taken in expected.items():
        if key in settings and settings[key] not in taken:
            words = " or ".join(repr(one) for one in taken)
            raise UserError(f"preprocess_cfg.{key} is {settings[key]!r}, expected {words}")
    return {
        "mean": colour("mean", settings.get("mean", CLIP_MEAN)),
        "std": colour("std", settings.get("std", CLIP_STD)),
        "resize_mode": settings.get("resize_mode", "shortest"),
        "interpolation": INTERPOLATIONS[settings.get("interpolation", "bicubic")],
        "fill_colour": _fill_colour(settings.get("fill_color", 0)),
    }


def to_open_clip(config: ImageTowerConfig) -> dict[str, Any]:
    """The `preprocess_cfg` with which open_clip prepares pictures as we do."""
    settings: dict[str, Any] = {
        "mean": list(config.mean),
        "std": list(config.std),
        "interpolation": config.interpolation,
        "resize_mode": config.resize_mode,
    }
    if config.resize_mode == "longest":
        fill = list(config.fill_colour)
        settings["fill_color"] = fill[0] if len(set(fill)) == 1 else fill
    return settings


def read_hugging_face(file: Path) -> dict[str, Any]:
    """The `preprocess_cfg` that does what a `preprocessor_config.json` of transformers says.

    Raises:
        UserError: the file is damaged, or open_clip has no such preprocessing.
    """
    try:
        return _open_clip_from_hugging_face(parse_json(file.read_text(encoding="utf-8")))
    except ValueError as error:
        raise UserError(f"{file}: {error}") from error


def _open_clip_from_hugging_face(document: Any) -> dict[str, Any]:
    if not isinstance(document, dict):
        raise UserError(f"contains a {type(document).__name__}, expected a mapping")
    for key, wanted in {"do_resize": True, "do_rescale": True, "do_pad": False}.items():
        if document.get(key, wanted) is not wanted:
            raise UserError(f"{key} is {document[key]!r}, expected {wanted!r}")
    factor = document.get("rescale_factor", 1 / 255)
    if not math.isclose(number("rescale_factor", factor), 1 / 255, rel_tol=1e-6):
        raise UserError(f"rescale_factor is {factor!r}, expected 1/255")
    if (resample := document.get("resample", 3)) not in RESAMPLING_NAMES:
        raise UserError(f"resample is {resample!r}, expected 2 (bilinear) or 3 (bicubic)")
    is_normalised = document.get("do_normalize", True)
    size, resize_mode = _hugging_face_size(document)
    return {
        "size": size,
        "mean": document.get("image_mean") if is_normalised else [0, 0, 0],
        "std": document.get("image_std") if is_normalised else [1, 1, 1],
        "interpolation": RESAMPLING_NAMES[resample],
        "resize_mode": resize_mode,
    }


def _hugging_face_size(document: dict[str, Any]) -> tuple[Any, str]:
    """The picture size and the resize mode."""
    size, crop = (_sides(document.get(key)) for key in ("size", "crop_size"))
    is_cropped = bool(document.get("do_center_crop", "crop_size" in document))
    edge = size.get("shortest_edge")
    if edge is not None and is_cropped and crop in ({"shortest_edge": edge}, {"height": edge, "width": edge}):
        return edge, "shortest"
    height = size.get("height")
    if height is not None and size == {"height": height, "width": height} and (not is_cropped or crop == size):
        return height, "squash"
    cropped = document.get("crop_size") if is_cropped else None
    raise UserError(
        f"size is {document.get('size')!r} and crop_size {cropped!r}, expected a shortest_edge and a crop of the same "
        f"size, or equal height and width"
    )


def _sides(size: Any) -> dict[str, Any]:
    """A size as a mapping; one number means the shorter side, as in older files."""
    return size if isinstance(size, dict) else {"shortest_edge": size}


def _fill_colour(value: Any) -> tuple[int, int, int]:
    values = [value] * 3 if type(value) is int else value
    is_colour = isinstance(values, list) and len(values) == 3
    if not is_colour or not all(type(one) is int and 0 <= one <= 255 for one in values):
        raise UserError(f"preprocess_cfg.fill_color is {value!r}, expected a number from 0 to 255, or three")
    red, green, blue = values
    return red, green, blue


def number(key: str, value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value < math.inf:
        raise UserError(f"{key} is {value!r}, expected a number")
    return float(value)


def colour(key: str, values: Any) -> tuple[float, float, float]:
    if not isinstance(values, (list, tuple)) or len(values) != 3:
        raise UserError(f"{key} is {values!r}, expected three numbers: red, green, blue")
    red, green, blue = (number(key, value) for value in values)
    return red, green, blue
