"""Convert models between Diptych's layout and open_clip's, which is also OpenAI's; for vision transformers.

A folder in open_clip's layout contains `open_clip_model.safetensors` and `open_clip_config.json`; open_clip loads it as
`local-dir:FOLDER`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from diptych.config.schema import ImageTowerConfig, ModelConfig, TextTowerConfig
from diptych.documents import parse_json
from diptych.errors import UserError
from diptych.model import preprocessing_settings
from diptych.model.dual_encoder import DualEncoder, check_tensors, shapes_of, without_memory
from diptych.model.preprocessing_settings import HUGGING_FACE_FILE, number, read_hugging_face
from diptych.model.trunk import ClipTransformerShape, clip_transformer_shape
from diptych.tensor_files import read_tensors, save_tensors
from diptych.terminal import counted

WEIGHTS_FILE = "open_clip_model.safetensors"
CONFIG_FILE = "open_clip_config.json"

OUTSIDE_BLOCKS = {
    "class_embedding": "trunk.cls_token",
    "positional_embedding": "trunk.pos_embed",
    "conv1.weight": "trunk.patch_embed.proj.weight",
    "ln_pre.weight": "trunk.norm_pre.weight",
    "ln_pre.bias": "trunk.norm_pre.bias",
    "ln_post.weight": "trunk.norm.weight",
    "ln_post.bias": "trunk.norm.bias",
    "proj": "proj",
}
"""open_clip's name under `visual.` → our name under `image.`."""

IN_A_BLOCK = {
    "ln_1.weight": "norm1.weight",
    "ln_1.bias": "norm1.bias",
    "attn.in_proj_weight": "attn.qkv.weight",
    "attn.in_proj_bias": "attn.qkv.bias",
    "attn.out_proj.weight": "attn.proj.weight",
    "attn.out_proj.bias": "attn.proj.bias",
    "ln_2.weight": "norm2.weight",
    "ln_2.bias": "norm2.bias",
    "mlp.c_fc.weight": "mlp.fc1.weight",
    "mlp.c_fc.bias": "mlp.fc1.bias",
    "mlp.c_proj.weight": "mlp.fc2.weight",
    "mlp.c_proj.bias": "mlp.fc2.bias",
}
"""open_clip's name under `visual.transformer.resblocks.N.` → our name under `image.trunk.blocks.N.`."""

LEADING_ONES = {"visual.class_embedding": 2, "visual.positional_embedding": 1}
"""How many dimensions of size one our tensor has before the dimensions of open_clip's."""

OPENAIS_NUMBERS = ("input_resolution", "context_length", "vocab_size")
"""Numbers in OpenAI's files that are not weights; they follow from the shapes of the others."""

TEXT_NAMES = ("text_projection", "positional_embedding", "token_embedding.", "transformer.", "ln_final.")

SCALARS = ("logit_scale", "logit_bias")
"""Parameters with shape [1] in our layout and [] in open_clip's."""

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


def to_open_clip(state: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Convert our tensors to open_clip's names and shapes.

    Raises:
        ValueError: open_clip's CLIP cannot have this image tower, or the state does not fit the config.
    """
    shapes = open_clip_shapes(state_vocab_size(state, "text.token_embedding.weight"), config, "logit_bias" in state)
    names = {our_name(name): name for name in shapes}
    check_tensors(state, {ours: our_shape(name, shapes[name]) for ours, name in names.items()})
    return {name: state[ours].reshape(shapes[name]) for ours, name in names.items()}


def from_open_clip(state: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Convert open_clip's tensors to our names and shapes; their precision is kept.

    Raises:
        ValueError: the state does not fit the config; the message names a tensor that does not fit.
    """
    state = {without_text_prefix(name): tensor for name, tensor in state.items() if name not in OPENAIS_NUMBERS}
    shapes = open_clip_shapes(state_vocab_size(state, "token_embedding.weight"), config, "logit_bias" in state)
    for name in SCALARS:
        if name in state and state[name].numel() == 1:  # open_clip's FSDP checkpoints have [1]
            state[name] = state[name].reshape(())
    check_tensors(state, shapes)
    return {our_name(name): state[name].reshape(our_shape(name, shape)) for name, shape in shapes.items()}


def image_from_open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the image tower by our names and shapes, from open_clip's tensors with any text tower.

    Raises:
        UserError: the image tower is not CLIP's vision transformer.
    """
    visual = {name: tensor for name, tensor in state.items() if name.startswith("visual.")}
    try:
        return {our_name(name): tensor.reshape(our_shape(name, tensor.shape)) for name, tensor in visual.items()}
    except (KeyError, ValueError):
        raise UserError("only CLIP's vision transformer is read in open_clip's layout") from None


def save_open_clip(
    folder: str | Path,
    state: Mapping[str, Tensor],
    config: ModelConfig,
    tokenizer_settings: dict[str, Any] | None = None,
) -> None:
    """Write weights and config to a folder, which is created if it does not exist.

    tokenizer_settings: settings of open_clip's HFTokenizer, which then reads the folder's `tokenizer.json`; None if the
        model uses CLIP's own vocabulary.
    """
    folder = Path(folder)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in to_open_clip(state, config).items()}
    document = open_clip_config(config, vocab_size=tensors["token_embedding.weight"].shape[0])
    if "logit_bias" in tensors:
        document["model_cfg"]["init_logit_bias"] = float(tensors["logit_bias"])  # so that open_clip creates a bias
    if tokenizer_settings is not None:
        # For a local folder open_clip reads the folder's own files, whatever the name is.
        text = document["model_cfg"]["text_cfg"]
        text |= {"hf_tokenizer_name": "tokenizer.json", "tokenizer_kwargs": tokenizer_settings}
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(tensors, folder / WEIGHTS_FILE)
    (folder / CONFIG_FILE).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def load_open_clip(folder: str | Path) -> tuple[dict[str, Tensor], ModelConfig]:
    """Read tensors and config, both converted to ours, from a folder in open_clip's layout.

    Raises:
        ValueError: a file is missing or damaged, or the model is not a CLIP with a vision transformer.
    """
    folder = Path(folder)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise UserError(f"{folder} is not a complete folder in open_clip's layout: {name} is missing")
    config, _ = read_open_clip_config(folder)
    state = read_tensors(folder / WEIGHTS_FILE)
    try:
        return from_open_clip(state, config), config
    except ValueError as error:
        raise UserError(f"{folder / WEIGHTS_FILE}: {error}") from error


def why_not_in_open_clips_layout(config: ModelConfig) -> str | None:
    """Why a model with this config cannot be written in open_clip's layout; None if it can."""
    try:
        open_clip_shapes(1, config)
    except UserError as error:
        return str(error)
    return None


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


def open_clip_shapes(vocab_size: int, config: ModelConfig, has_logit_bias: bool = False) -> dict[str, tuple[int, ...]]:
    """The name and shape of every tensor of open_clip's model with this config."""
    model = without_memory(config, vocab_size)
    depth = image_shape(config, model).depth
    names = [f"visual.{name}" for name in OUTSIDE_BLOCKS]
    names += [f"visual.transformer.resblocks.{i}.{name}" for i in range(depth) for name in IN_A_BLOCK]
    ours = {**shapes_of(model), **({"logit_bias": (1,)} if has_logit_bias else {})}
    names += [name.removeprefix("text.") for name in ours if name.startswith("text.") or name in SCALARS]

    left = ours.keys() - {our_name(name) for name in names}
    if left:
        raise UserError(
            f"model.image {config.image.name} has {min(left)}, for which open_clip's layout has no place: "
            f"only the vit_*_clip_* models of timm can be written in it"
        )
    shapes = {name: ours[our_name(name)][LEADING_ONES.get(name, 0) :] for name in names}
    return {**shapes, **{name: () for name in SCALARS if name in shapes}}


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


def our_name(name: str) -> str:
    if name in SCALARS:
        return name
    if not name.startswith("visual."):
        return f"text.{name}"
    name = name.removeprefix("visual.")
    if name in OUTSIDE_BLOCKS:
        return f"image.{OUTSIDE_BLOCKS[name]}"
    _, _, number, rest = name.split(".", 3)
    return f"image.trunk.blocks.{number}.{IN_A_BLOCK[rest]}"


def our_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    if name in SCALARS:
        return (1,)
    return (1,) * LEADING_ONES.get(name, 0) + shape


def without_text_prefix(name: str) -> str:
    """A tensor's name in open_clip's CLIP; its CustomTextCLIP puts the text tower's tensors under `text.`."""
    bare = name.removeprefix("text.")
    return bare if bare.startswith(TEXT_NAMES) else name


def state_vocab_size(state: Mapping[str, Tensor], name: str) -> int:
    if name not in state:
        raise UserError(f"tensor {name} is missing: got {counted(len(state), 'tensor')}, none with that name")
    return state[name].shape[0]


def resize_image_positions(state: Mapping[str, Tensor], model: DualEncoder) -> dict[str, Tensor]:
    """Resample the position grid of a vision transformer to the model's picture size; return a new state.

    The class token's position stays; the grid is resampled bicubically with antialiasing, as open_clip does.
    This is how the paper's L/14@336 continues L/14 (section 2.5).
    """
    name = "image.trunk.pos_embed"
    state, wanted = dict(state), model.state_dict().get(name)
    if name not in state or wanted is None or state[name].shape == wanted.shape:
        return state
    old, new = math.isqrt(state[name].shape[1]), math.isqrt(wanted.shape[1])
    prefix = state[name].shape[1] - old**2
    if prefix not in (0, 1) or wanted.shape[1] - new**2 != prefix:
        return state  # not a square grid; the check of shapes will report it
    grid = state[name][:, prefix:].float().reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", antialias=True, align_corners=False)
    grid = grid.permute(0, 2, 3, 1).reshape(1, new * new, -1).to(state[name].dtype)
    state[name] = torch.cat([state[name][:, :prefix], grid], dim=1)
    return state
