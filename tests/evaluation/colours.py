"""A small real encoder for tests, which embeds pictures and texts by colour, so that the nearest ones are known."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "cyan": (0, 255, 255),
    "magenta": (255, 0, 255),
}


class ColourEncoder:
    """Embeds a picture as its mean colour, and a text as the sum of the colours that it names."""

    logit_scale = 20.0

    def embed_pictures(self, pictures: Sequence[bytes]) -> np.ndarray:
        return self.embed_prepared([self.prepare(Image.open(io.BytesIO(each))) for each in pictures])

    def prepare(self, picture: Image.Image) -> np.ndarray:
        return np.asarray(picture, dtype=np.float32).mean(axis=(0, 1))

    def embed_prepared(self, prepared: Sequence[np.ndarray]) -> np.ndarray:
        return np.stack(prepared)

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        named = [[COLOURS[word] for word in COLOURS if word in text] for text in texts]
        return np.array([np.sum([(1, 1, 1), *colours], axis=0) for colours in named], dtype=np.float32)


def picture(colour: Sequence[int], size: int = 16) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (size, size), tuple(colour)).save(file, "PNG")
    return file.getvalue()


def write_tree(folder: Path, labels: Sequence[str], copies: int = 2) -> Path:
    """Write FOLDER/LABEL/N.png, each a little darker; the label's first word is the colour."""
    for label in labels:
        (folder / label).mkdir(parents=True)
        for copy in range(copies):
            colour = [max(0, value - 9 * copy) for value in COLOURS[label.split()[0]]]
            (folder / label / f"{copy}.png").write_bytes(picture(colour))
    return folder
