"""Change the colours of a small picture at random, as torchvision's ColorJitter and Grayscale change Pillow's images.

Pillow's operations are what open_clip applies, and take less time than torchvision's on tensors.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance

from diptych.config.schema import ColourJitterConfig
from diptych.data.draws import Draws


def jitter_colours(square: np.ndarray, config: ColourJitterConfig, draws: Draws) -> np.ndarray:
    """Change brightness, contrast, saturation and hue of u8[3, height, width], in a random order."""
    amounts = {name: getattr(config, name) for name in ENHANCEMENTS if getattr(config, name) > 0}
    if not amounts:
        return square
    picture = _to_pillow(square)
    for name in draws.shuffled(list(amounts)):
        amount = amounts[name]
        neutral, lowest = (0.0, -amount) if name == "hue" else (1.0, max(0.0, 1 - amount))
        picture = ENHANCEMENTS[name](picture, draws.uniform(lowest, neutral + amount))
    return _from_pillow(picture)


def grey(square: np.ndarray) -> np.ndarray:
    """u8[3, height, width]: the luminance of the picture in all three channels."""
    return _from_pillow(_to_pillow(square).convert("L").convert("RGB"))


def _hue(picture: Image.Image, turns: float) -> Image.Image:
    """Turn the colour circle by a share of a whole turn, which has 255 steps here, as in torchvision."""
    hue, saturation, value = picture.convert("HSV").split()
    steps = int(turns * 255)
    turned = hue.point([(hue + steps) % 256 for hue in range(256)])
    return Image.merge("HSV", (turned, saturation, value)).convert("RGB")


ENHANCEMENTS: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "brightness": lambda picture, factor: ImageEnhance.Brightness(picture).enhance(factor),
    "contrast": lambda picture, factor: ImageEnhance.Contrast(picture).enhance(factor),
    "saturation": lambda picture, factor: ImageEnhance.Color(picture).enhance(factor),
    "hue": _hue,
}
"""Setting of the config → what it does to a picture."""


def _to_pillow(square: np.ndarray) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(square.transpose(1, 2, 0)))


def _from_pillow(picture: Image.Image) -> np.ndarray:
    channels_first: np.ndarray = np.asarray(picture).transpose(2, 0, 1)
    return channels_first
