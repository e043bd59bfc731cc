"""Make what both sides evaluate: a model with random weights, labelled pictures, and pictures with captions.

The model is in open_clip's layout, the pictures are in CLIP_benchmark's; Diptych reads both as they are.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
import yaml
from benchmarks.loader.shards import Kind, random_caption, random_jpeg
from open_clip.transform import PreprocessCfg
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES
from safetensors.torch import save_file

from diptych.data.shard_writer import ShardWriter

MODEL = "ViT-B-32"
NARROW = "ViT-B-32-narrow"
"""Two blocks of width 64 in each tower; pictures, texts and embeddings have the shapes of ViT-B/32."""
CAPTIONS_A_PICTURE = 5
PHOTOGRAPHS = Kind("photographs", (333, 500), (85, 96))
"""About the size of ImageNet's and COCO's pictures."""


@dataclass(frozen=True)
class Sizes:
    pictures: int
    classes: int
    templates: int
    captions: int

    @property
    def captioned_pictures(self) -> int:
        return self.captions // CAPTIONS_A_PICTURE


def write_model(folder: Path, name: str) -> None:
    """Write open_clip's model with random weights; open_clip finds the configuration of NARROW in the same folder."""
    folder.mkdir()
    if name == NARROW:
        (folder / f"{NARROW}.json").write_text(json.dumps(narrowed(open_clip.get_model_config(MODEL))))
        open_clip.add_model_config(folder)
    torch.manual_seed(0)
    model = open_clip.create_model(name)
    save_file({name: each.contiguous() for name, each in model.state_dict().items()}, weights_of(folder))
    document = {"model_cfg": open_clip.get_model_config(name), "preprocess_cfg": asdict(PreprocessCfg())}
    (folder / "open_clip_config.json").write_text(json.dumps(document))


def narrowed(config: dict[str, Any]) -> dict[str, Any]:
    blocks = {"layers": 2, "width": 64}
    return config | {
        "vision_cfg": config["vision_cfg"] | blocks,
        "text_cfg": config["text_cfg"] | blocks | {"heads": 1},
    }


def weights_of(folder: Path) -> Path:
    return folder / "open_clip_model.safetensors"


def write_labelled(folder: Path, sizes: Sizes, photographs: list[Path]) -> None:
    """Write pictures with class numbers, and the first of ImageNet's classes and templates."""

    def label(draw: random.Random) -> dict[str, bytes]:
        return {"cls": str(draw.randrange(sizes.classes)).encode()}

    _write_shard(folder, sizes.pictures, photographs, label)
    classes = IMAGENET_CLASSNAMES[: sizes.classes]
    templates = [template("{c}") for template in OPENAI_IMAGENET_TEMPLATES[: sizes.templates]]
    (folder / "classnames.txt").write_text("\n".join(classes))
    (folder / "zeroshot_classification_templates.txt").write_text("\n".join(templates))
    document = {
        "classes": [{"name": f"{number} {name}", "names": [name]} for number, name in enumerate(classes)],
        "templates": [template.replace("{c}", "{}") for template in templates],
    }
    (folder / "prompts.yaml").write_text(yaml.safe_dump(document))


def write_captioned(folder: Path, sizes: Sizes, photographs: list[Path]) -> None:
    """Write pictures with five captions each, all different."""
    used: set[str] = set()

    def captions(draw: random.Random) -> dict[str, bytes]:
        own: list[str] = []
        while len(own) < CAPTIONS_A_PICTURE:
            if (caption := random_caption(draw)) not in used:
                used.add(caption)
                own.append(caption)
        return {"txt": "\n".join(own).encode()}

    _write_shard(folder, sizes.captioned_pictures, photographs, captions)
    (folder / "dataset_type.txt").write_text("retrieval")


def _write_shard(
    folder: Path, number: int, photographs: list[Path], members: Callable[[random.Random], Mapping[str, bytes]]
) -> None:
    (folder / "test").mkdir(parents=True)
    with ShardWriter(folder / "test", "0.tar") as writer:
        for place in range(number):
            draw = random.Random(f"{folder.name} {place}")
            jpeg = random_jpeg(draw, PHOTOGRAPHS, draw.choice(photographs))
            writer.add(f"{place:09}", {"jpg": jpeg, **members(draw)})
    (folder / "test" / "nshards.txt").write_text("1")
