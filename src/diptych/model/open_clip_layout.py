"""Convert models between Diptych's layout and open_clip's, which is also OpenAI's; for vision transformers.

A folder in open_clip's layout contains `open_clip_model.safetensors` and `open_clip_config.json`; open_clip loads it as
`local-dir:FOLDER`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from diptych.config.schema import ModelConfig
from diptych.errors import UserError
from diptych.model.dual_encoder import check_tensors, shapes_of, without_memory
from diptych.model.open_clip_config import CONFIG_FILE, image_shape, open_clip_config, read_open_clip_config
from diptych.tensor_files import read_tensors, save_tensors
from diptych.terminal import counted

WEIGHTS_FILE = "open_clip_model.safetensors"

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
