"""Convert the config of a model between Diptych's and open_clip's, for vision transformers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

from diptych.config.schema import ImageTowerConfig, ModelConfig, TextTowerConfig
from diptych.documents import parse_json
from diptych.errors import UserError
from diptych.model import preprocessing_settings
from diptych.model.dual_encoder import DualEncoder, without_memory
from diptych.model.preprocessing_settings import HUGGING_FACE_FILE, number, read_hugging_face
from diptych.model.trunk import ClipTransformerShape, clip_transformer_shape

CONFIG_FILE = "open_clip_config.json"

KNOWN_SETTINGS = {
    "model_cfg": (
        "embed_dim",
        "vision_cfg",
        "text_cfg",
        "quick_gelu",
        "custom_text",
        "init_logit_scale",
        "init_logit_bias",
    ),
    "vision_cfg": ("image_size", "layers", "width", "head_width", "patch_size", "mlp_ratio"),
    "text_cfg": ("context_length", "vocab_size", "width", "heads", "layers")
    + ("hf_tokenizer_name", "tokenizer_mode", "tokenizer_kwargs", "pad_id", "eos_id"),
}
NEUTRAL_SETTINGS = {
    "pool_type": "tok",
    "pos_embed_type": "learnable",
    "proj_type": "linear",
    "mlp_ratio": 4.0,
}
"""Settings that a config may spell out because they describe what our towers do."""

VIT_B_32 = {"patch_size": 32, "embed_dim": 768, "depth": 12, "num_heads": 12, "mlp_ratio": 4.0}
"""Settings of timm's ViT-B/32 without overrides."""
VIT_B_32_NAMES = {
    "gelu": "vit_base_patch32_clip_224",
    "quick_gelu": "vit_base_patch32_clip_quickgelu_224",
}


def read_open_clip_config(folder: Path) -> tuple[ModelConfig, int]:
    """Read the config of a folder in open_clip's layout: our config and the size of the vocabulary.

    If it does not say how pictures are prepared, transformers' preprocessor_config.json next to it does.

    Raises:
        UserError: the file is damaged, or the model is not a CLIP with a vision transformer.
    """
    try:
        document = parse_json((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{folder / CONFIG_FILE}: {error}") from error
    file = folder / HUGGING_FACE_FILE
    if isinstance(document, dict) and document.get("preprocess_cfg") is None and file.is_file():
        document["preprocess_cfg"] = read_hugging_face(file)
    try:
        return config_from_open_clip(document), size(document["model_cfg"]["text_cfg"], "vocab_size", 49408)
    except ValueError as error:
        raise UserError(f"{folder / CONFIG_FILE}: {error}") from error


def open_clip_config(config: ModelConfig, vocab_size: int) -> dict[str, Any]:
    """The config from which open_clip builds this model and prepares its pictures.

    Raises:
        ValueError: open_clip cannot describe this model.
    """
    shape = image_shape(config, without_memory(config, 1))
    mlp_ratio = shape.mlp_width / shape.width
    if int(shape.width * mlp_ratio) != shape.mlp_width:  # the ratio was rounded down
        mlp_ratio = math.nextafter(mlp_ratio, math.inf)
    vision = {
        "image_size": config.image.image_size,
        "layers": shape.depth,
        "width": shape.width,
        "head_width": shape.width // shape.heads,
        "patch_size": shape.patch_size,
        "mlp_ratio": mlp_ratio,
    }
    text = {
        "context_length": config.text.context_length,
        "vocab_size": vocab_size,
        "width": config.text.width,
        "heads": config.text.heads,
        "layers": config.text.layers,
    }
    model = {"embed_dim": config.embed_dim, "vision_cfg": vision, "text_cfg": text}
    if config.text.activation == "quick_gelu":
        model["quick_gelu"] = True
    return {"model_cfg": model, "preprocess_cfg": preprocessing_settings.to_open_clip(config.image)}


def config_from_open_clip(document: Any) -> ModelConfig:
    """Convert an open_clip config to ours.

    Raises:
        ValueError: it describes something other than CLIP with a vision transformer.
    """
    model = section(document, "model_cfg")
    vision, text = section(model, "vision_cfg"), section(model, "text_cfg")
    for where, settings in (("model_cfg", model), ("vision_cfg", vision), ("text_cfg", text)):
        refuse_other_settings(where, settings)
    preprocessing = section({"preprocess_cfg": {}, **document}, "preprocess_cfg")
    image_size = size(vision, "image_size", 224)

    activation: Literal["gelu", "quick_gelu"] = "quick_gelu" if model.get("quick_gelu") else "gelu"
    width = size(vision, "width", 768)
    sizes = {
        "patch_size": size(vision, "patch_size", 16),
        "embed_dim": width,
        "depth": size(vision, "layers", 12),
        "num_heads": width // size(vision, "head_width", 64),
        "mlp_ratio": number("mlp_ratio", vision.get("mlp_ratio", 4.0)),
    }
    image = ImageTowerConfig(
        name=VIT_B_32_NAMES[activation],
        image_size=image_size,
        overrides={key: value for key, value in sizes.items() if value != VIT_B_32[key]},
        **preprocessing_settings.from_open_clip(preprocessing, image_size),
    )
    text_tower = TextTowerConfig(
        context_length=size(text, "context_length", 77),
        width=size(text, "width", 512),
        heads=size(text, "heads", 8),
        layers=size(text, "layers", 12),
        activation=activation,
    )
    return ModelConfig(embed_dim=size(model, "embed_dim", None), image=image, text=text_tower)


def section(document: Any, name: str) -> dict[str, Any]:
    found = document.get(name) if isinstance(document, dict) else None
    if not isinstance(found, dict):
        raise UserError(f"there is no mapping {name}, as an open_clip config has")
    return found


def size(settings: dict[str, Any], key: str, default: int | None) -> int:
    value = settings.get(key, default)
    if type(value) is not int or value < 1:
        raise UserError(f"{key} is {value!r}, expected a whole number: only vision transformers are read")
    return value


def refuse_other_settings(where: str, settings: dict[str, Any]) -> None:
    for key, value in settings.items():
        known = key in KNOWN_SETTINGS[where] or NEUTRAL_SETTINGS.get(key) == value or not value
        if not known:
            raise UserError(f"{where}.{key} is {value!r}: Diptych's CLIP does not support it, expected it unset")


def image_shape(config: ModelConfig, model: DualEncoder) -> ClipTransformerShape:
    """The sizes of the model's image tower, which is CLIP's vision transformer.

    Raises:
        UserError: the tower is another, or the text tower has another activation.
    """
    shape = clip_transformer_shape(model.image.trunk)
    if shape is None:
        raise UserError(
            f"model.image {config.image.name} does not compute what open_clip's image tower does: "
            f"only the vit_*_clip_* models of timm can be written in its layout"
        )
    if shape.activation != config.text.activation:
        raise UserError(
            f"the image tower computes {shape.activation}, the text tower {config.text.activation}: "
            f"open_clip's layout has one activation for both"
        )
    return shape
