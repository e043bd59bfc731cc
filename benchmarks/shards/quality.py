"""Measure the quality of stored pictures: PSNR against full decoding and Pillow's bicubic resize."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from benchmarks.shards.pictures import Picture
from PIL import Image


class Quality:
    """Compares stored pictures with references, which are made once."""

    def __init__(self, pictures: list[Picture]):
        self._pictures = pictures
        self._wanted: dict[tuple[int, tuple[int, int]], np.ndarray] = {}

    def psnr(self, out: Path, numbers: list[int]) -> dict[str, float]:
        """Compare one stored picture for each served one; `numbers` maps rows of the table to pictures."""
        found: dict[int, float] = {}
        for row, stored in _stored(out):
            number = numbers[row]
            if number not in found:
                found[number] = self._compare(number, Image.open(io.BytesIO(stored)).convert("RGB"))
        values = list(found.values())
        return {
            "mean": round(float(np.mean(values)), 2),
            "5th_percentile": round(float(np.percentile(values, 5)), 2),
        }

    def _compare(self, number: int, stored: Image.Image) -> float:
        key = number, stored.size
        if key not in self._wanted:
            picture = Image.open(io.BytesIO(self._pictures[number].data)).convert("RGB")
            resized = picture.resize(stored.size, Image.Resampling.BICUBIC)
            self._wanted[key] = np.asarray(resized, np.int16)
        return _psnr(self._wanted[key], np.asarray(stored, np.int16))


def num_stored(out: Path) -> int:
    return sum(1 for _ in _stored(out))


def _stored(out: Path) -> Iterator[tuple[int, bytes]]:
    """The row in the table and the bytes of each stored picture; the caption ends with the row."""
    for tar in sorted(out.glob("*.tar")):
        with tarfile.open(tar) as members:
            pictures: dict[str, bytes] = {}
            rows: dict[str, int] = {}
            for member in members:
                key, _, suffix = member.name.partition(".")
                content = members.extractfile(member)
                assert content is not None
                if suffix == "jpg":
                    pictures[key] = content.read()
                elif suffix == "txt":
                    rows[key] = int(content.read().rsplit(b" ", 1)[1])
            yield from ((rows[key], data) for key, data in pictures.items())


def _psnr(one: np.ndarray, other: np.ndarray) -> float:
    error = float(np.mean(np.square(one - other, dtype=np.int32)))
    return 99.0 if error == 0 else 10 * np.log10(255**2 / error)
