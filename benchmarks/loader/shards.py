"""Make shards of three kinds from real photographs, always the same.

`256`: pictures as img2dataset stores them for training, shorter side 256. `originals`: as cameras and sites write them,
shorter side 512 to 1,024, a quarter of them progressive, a quarter with full colour. `train_ready`: as `diptych-shards
build --for-training 224` stores them.
"""

from __future__ import annotations

import io
import json
import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image

from diptych.data.shard_writer import ShardWriter

WORDS = (
    "the a of in with and for at on old new small large red blue white green photo picture view house street river "
    "mountain lake garden dog cat horse bird coffee cup table window door night summer winter beach city morning "
    "portrait vintage wooden hotel kitchen bedroom wedding dress shoes sale free online canon nikon stock illustration"
).split()
WORDS_A_CAPTION = 4, 16
NUMBERED_SHARE = 1 / 8
ASPECT_RATIOS = (1.0, 4 / 3, 3 / 4, 3 / 2, 2 / 3, 16 / 9)
ZOOMS = 0.6, 1.0


@dataclass(frozen=True)
class Kind:
    """Shards of one kind."""

    name: str
    shorter_sides: tuple[int, int]
    qualities: tuple[int, int]
    progressive_share: float = 0.0
    full_colour_share: float = 0.0


KINDS = (
    Kind("256", (256, 256), (85, 95)),
    Kind("originals", (512, 1024), (75, 95), progressive_share=0.25, full_colour_share=0.25),
    Kind("train_ready", (224, 224), (90, 90)),
)


def write_shard(folder: Path, kind: Kind, number: int, photographs: list[Path]) -> None:
    """Write one shard of this many pairs."""
    folder.mkdir(parents=True)
    with ShardWriter(folder, 0) as writer:
        for place in range(number):
            draw = random.Random(f"{kind.name} {place}")
            caption = random_caption(draw)
            members = {
                "jpg": random_jpeg(draw, kind, draw.choice(photographs)),
                "txt": caption.encode(),
                "json": json.dumps({"caption": caption, "key": f"{place:09}", "status": "success"}).encode(),
            }
            writer.add(f"{place:09}", members)


def random_caption(draw: random.Random) -> str:
    words = draw.choices(WORDS, k=draw.randint(*WORDS_A_CAPTION))
    if draw.random() < NUMBERED_SHARE:
        words.append(f"img_{draw.randrange(10**6)}.jpg")
    return " ".join(words)


def random_jpeg(draw: random.Random, kind: Kind, photograph: Path) -> bytes:
    pixels = _photograph(photograph)
    ratio = draw.choice(ASPECT_RATIOS)
    shorter = draw.randint(*kind.shorter_sides)
    width, height = round(shorter * max(ratio, 1)), round(shorter * max(1 / ratio, 1))
    zoom = draw.uniform(*ZOOMS) * min(pixels.width / width, pixels.height / height)
    columns, rows = round(width * zoom), round(height * zoom)
    left, top = draw.randint(0, pixels.width - columns), draw.randint(0, pixels.height - rows)
    picture = pixels.resize((width, height), Image.Resampling.BICUBIC, box=(left, top, left + columns, top + rows))
    if draw.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    file = io.BytesIO()
    picture.save(
        file,
        "JPEG",
        quality=draw.randint(*kind.qualities),
        progressive=draw.random() < kind.progressive_share,
        subsampling="4:4:4" if draw.random() < kind.full_colour_share else "4:2:0",
    )
    return file.getvalue()


@cache
def _photograph(path: Path) -> Image.Image:
    return Image.open(path).convert("RGB")
