"""A trained model as others use it: load a model folder or a run, embed pictures and texts."""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from diptych.config.schema import ModelConfig
from diptych.data.augment import centre_crop
from diptych.data.picture_safety import PictureError, open_picture
from diptych.data.tokenizer import Tokenizer, load_tokenizer
from diptych.files import flush, local_path, sha256_of
from diptych.model import interop
from diptych.model.dual_encoder import DualEncoder, check_tensors, expected_shapes, load_weights
from diptych.world import choose_device

if TYPE_CHECKING:
    from PIL import Image

logger = logging.getLogger(__name__)

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
VOCABULARY_FILE = "vocabulary.json"
MANIFEST_FILE = "manifest.json"
"""What makes a checkpoint complete; `diptych.training.checkpoint` writes it."""

FORMAT = "diptych-model"
FORMAT_VERSION = 1


class Encoder:
    """A model in evaluation mode with its tokenizer and its picture preprocessing."""

    def __init__(self, model: DualEncoder, tokenizer: Tokenizer, config: ModelConfig, device: torch.device):
        self.model = model.to(device).eval()
        self.tokenizer = tokenizer
        self.config = config
        self.device = device

    @property
    def logit_scale(self) -> float:
        """What cosine similarities are multiplied by before a softmax (1 / temperature)."""
        return float(self.model.logit_scale.detach().exp())

    @torch.inference_mode()
    def embed_images(self, images: Tensor) -> Tensor:
        """u8[batch 3 H W] of the model's size → f32[batch dim] of unit norm, on the CPU."""
        return self.model.encode_image(images.to(self.device)).cpu()

    def embed_pictures(self, pictures: Sequence[str | Path | bytes | Image.Image], batch_size: int = 64) -> Tensor:
        """Files, encoded bytes or Pillow images → f32[n dim] of unit norm, on the CPU.

        Raises:
            PictureError, OSError: one of them is no readable picture.
        """
        embeddings = [torch.empty(0, self.config.embed_dim)]
        for start in range(0, len(pictures), batch_size):
            batch = [self._pixels(picture) for picture in pictures[start : start + batch_size]]
            embeddings.append(self.embed_images(torch.stack(batch)))
        return torch.cat(embeddings)

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """Texts → f32[n dim] of unit norm, on the CPU."""
        embeddings = [torch.empty(0, self.config.embed_dim)]
        for start in range(0, len(texts), batch_size):
            batch = list(texts[start : start + batch_size])
            rows = self.tokenizer(batch, self.config.text.context_length)
            tokens, lengths = (torch.from_numpy(array).to(self.device) for array in rows)
            embeddings.append(self.model.encode_text(tokens, lengths).cpu())
        return torch.cat(embeddings)

    def _pixels(self, picture: str | Path | bytes | Image.Image) -> Tensor:
        if isinstance(picture, (str, Path)):
            try:
                return self._pixels(Path(picture).read_bytes())
            except PictureError as error:
                raise PictureError(error.reason, f"{picture}: {error}") from error
        image = open_picture(picture) if isinstance(picture, bytes) else picture.convert("RGB")
        return centre_crop(image, self.config.image.image_size)


def load(path: str | Path, device: str | torch.device | None = None) -> Encoder:
    """The encoder of a model folder or of a run's newest checkpoint; on the GPU where there is one.

    Raises:
        ValueError: no model there, or a damaged one; no such device.
    """
    chosen = choose_device(device)
    state, config, tokenizer = read_model_folder(model_folder(path))
    model = DualEncoder(config, tokenizer.vocab_size, 0.0)
    load_weights(model, state)
    return Encoder(model, tokenizer, config, chosen)


def start_from(model: DualEncoder, path: str | Path) -> None:
    """Fill a model with the weights of a model folder or a run, resampled to the model's picture size.

    Raises:
        ValueError: no model there, or one of another shape.
    """
    folder = model_folder(path)
    state, _, _ = read_model_folder(folder)
    try:
        load_weights(model, interop.resize_image_positions(state, model))
    except ValueError as error:
        raise ValueError(f"model.initial_weights {folder} does not fit the model: {error}") from error


def model_folder(path: str | Path) -> Path:
    """The model folder that a path means: itself, or that of a run's newest whole checkpoint.

    Raises:
        ValueError: neither of the two.
    """
    path = local_path(path)
    if not path.is_dir():
        raise ValueError(f"{path} is no folder; expected a model folder or a run directory")
    if any((path / name).is_file() for name in (CONFIG_FILE, WEIGHTS_FILE, interop.CONFIG_FILE)):
        return path
    faults = []
    for checkpoint in complete_checkpoints(path):
        try:
            check_hashes(checkpoint)
            return checkpoint / "model"
        except ValueError as error:
            faults.append(str(error))
            logger.warning("%s; trying the checkpoint before it", error)
    if faults:
        raise ValueError(f"{path} has no checkpoint that is whole; the newest: {faults[0]}")
    raise ValueError(
        f"{path} holds neither a model ({CONFIG_FILE}, {WEIGHTS_FILE}, {VOCABULARY_FILE}) "
        f"nor a complete checkpoint (checkpoints/step_*/{MANIFEST_FILE})"
    )


def complete_checkpoints(run_dir: Path) -> list[Path]:
    """The checkpoints that have a manifest, newest first."""
    steps = {}
    for manifest in run_dir.glob(f"checkpoints/step_*/{MANIFEST_FILE}"):
        if found := re.fullmatch(r"step_(\d+)", manifest.parent.name):
            steps[int(found.group(1))] = manifest.parent
    return [steps[step] for step in sorted(steps, reverse=True)]


def check_hashes(checkpoint: Path) -> None:
    """Compare a checkpoint's model folder with its manifest.

    Raises:
        ValueError: the manifest cannot be read, or a file is missing or has changed since it was written.
    """
    try:
        files = json.loads((checkpoint / MANIFEST_FILE).read_text(encoding="utf-8"))["files"]
        hashes = {name: files[f"model/{name}"]["sha256"] for name in (WEIGHTS_FILE, CONFIG_FILE, VOCABULARY_FILE)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{checkpoint / MANIFEST_FILE} cannot be read: {error!r}") from error
    for name, expected in hashes.items():
        file = checkpoint / "model" / name
        if not file.is_file() or sha256_of(file) != expected:
            raise ValueError(f"{file} is not what was written there: its sha256 is not {expected[:12]}…")


def save_model_folder(folder: str | Path, state: dict[str, Tensor], config: ModelConfig, tokenizer: Tokenizer) -> None:
    """Write weights, config and vocabulary into a folder, made if need be; return when the disk has them."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_tensors(weights, folder / WEIGHTS_FILE)

    # Where a run started from says nothing to the reader of its result, and is a path on another's machine.
    described = dataclasses.asdict(dataclasses.replace(config, initial_weights=None))
    document = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "vocab_size": tokenizer.vocab_size,
        "model": described,
    }
    (folder / CONFIG_FILE).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    tokenizer.save(folder / VOCABULARY_FILE)
    for name in (WEIGHTS_FILE, CONFIG_FILE, VOCABULARY_FILE, "."):
        flush(folder / name)


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file; a full disk is an OSError here as everywhere else."""
    try:
        safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})
    except safetensors.SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        raise OSError(int(number.group(1)) if number else errno.EIO, str(error), str(path)) from error


def read_model_folder(folder: str | Path) -> tuple[dict[str, Tensor], ModelConfig, Tokenizer]:
    """Weights, config and tokenizer of a model folder, ours or open_clip's, checked against one another.

    Raises:
        ValueError: a file is missing or damaged, or they do not fit together.
    """
    folder = Path(folder)
    if (folder / interop.CONFIG_FILE).is_file():
        return read_open_clip_folder(folder)
    for name in (CONFIG_FILE, WEIGHTS_FILE, VOCABULARY_FILE):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} is no whole model folder: {name} is missing")
    config, vocab_size = read_config(folder / CONFIG_FILE)
    tokenizer = Tokenizer.load(folder / VOCABULARY_FILE)
    if tokenizer.vocab_size != vocab_size:
        found = tokenizer.vocab_size
        raise ValueError(f"{folder / VOCABULARY_FILE} has {found} tokens, {CONFIG_FILE} expects {vocab_size}")
    state = read_safetensors(folder / WEIGHTS_FILE)
    try:
        check_tensors(state, expected_shapes(config, vocab_size))
    except ValueError as error:
        raise ValueError(f"{folder / WEIGHTS_FILE}: {error}") from error
    return state, config, tokenizer


def read_open_clip_folder(folder: Path) -> tuple[dict[str, Tensor], ModelConfig, Tokenizer]:
    """The same of a folder in open_clip's layout; the tokenizer is CLIP's where the folder brings none."""
    state, config = interop.load_open_clip(folder)
    vocabulary = folder / VOCABULARY_FILE
    tokenizer = load_tokenizer(str(vocabulary) if vocabulary.is_file() else "clip")
    rows = len(state["text.token_embedding.weight"])
    if tokenizer.vocab_size != rows:
        raise ValueError(
            f"{folder} has embeddings of {rows} tokens, its vocabulary {tokenizer.vocab_size}: "
            f"put the vocabulary it was trained with there as {VOCABULARY_FILE}"
        )
    return state, config, tokenizer


def read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read as safetensors: {error}") from error


def read_config(path: Path) -> tuple[ModelConfig, int]:
    """The model's config and the size of its vocabulary."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ValueError(f'{path} describes no Diptych model: expected "format": "{FORMAT}"')
    if document.get("version") != FORMAT_VERSION:
        version = document.get("version")
        raise ValueError(f"{path} has format version {version}, this Diptych reads {FORMAT_VERSION}")
    try:
        config = rebuild(ModelConfig, document.get("model"), "model")
        return config, rebuild(int, document.get("vocab_size"), "vocab_size")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def rebuild(wanted: Any, value: Any, where: str) -> Any:
    """The value as a field's type: a dataclass from its mapping, a tuple from its list, the rest as it is.

    Raises:
        ValueError: the value is no such thing.
    """
    if dataclasses.is_dataclass(wanted):
        return rebuild_dataclass(wanted, value, where)
    if get_origin(wanted) is Literal:
        if value not in get_args(wanted):
            raise ValueError(f"{where} is {value!r}, expected one of {', '.join(get_args(wanted))}")
        return value
    if get_origin(wanted) is tuple:
        kinds = get_args(wanted)
        if not isinstance(value, list) or len(value) != len(kinds):
            raise ValueError(f"{where} is {value!r}, expected a list of {len(kinds)}")
        return tuple(rebuild(kind, item, where) for kind, item in zip(kinds, value, strict=True))
    if wanted is float and type(value) is int:
        return float(value)
    allowed = get_args(wanted) if get_origin(wanted) is UnionType else (get_origin(wanted) or wanted,)
    if type(value) not in allowed:
        raise ValueError(f"{where} is {value!r}, expected {' or '.join(kind.__name__ for kind in allowed)}")
    if wanted is int and value < 1:
        raise ValueError(f"{where} is {value}, expected at least 1: it is a size")
    return value


def rebuild_dataclass(wanted: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{where} is {value!r}, expected a mapping")
    types = get_type_hints(wanted)
    if unknown := sorted(value.keys() - types.keys()):
        raise ValueError(f"{where}.{unknown[0]} is unknown; expected {', '.join(types)}")
    if missing := sorted(types.keys() - value.keys()):
        raise ValueError(f"{where}.{missing[0]} is missing")
    return wanted(**{name: rebuild(types[name], value[name], f"{where}.{name}") for name in types})
