"""Read and write model folders (weights, config, vocabulary), in Diptych's layout or open_clip's."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from torch import Tensor

from diptych.checkpoint_folder import EMA, MANIFEST, MODEL, newest_valid, verify
from diptych.config.schema import ModelConfig
from diptych.data.tokenizer import Tokenizer, load_tokenizer
from diptych.documents import parse_json
from diptych.errors import UserError
from diptych.files import flush, local_path, no_such_path
from diptych.loss import WordLoss
from diptych.loss.visual_ngrams import VisualNgrams
from diptych.loss.words import BagOfWords
from diptych.model.dual_encoder import check_tensors, expected_shapes, word_predictor_shapes
from diptych.model.open_clip_config import CONFIG_FILE as OPEN_CLIPS_CONFIG_FILE
from diptych.model.open_clip_config import read_open_clip_config
from diptych.model.open_clip_layout import WEIGHTS_FILE as OPEN_CLIPS_WEIGHTS_FILE
from diptych.model.open_clip_layout import load_open_clip
from diptych.tensor_files import read_tensors, save_tensors

logger = logging.getLogger(__name__)

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
VOCABULARY_FILE = "vocabulary.json"
NGRAMS_FILE = "ngrams.json"
"""The dictionary of a model that predicts n-grams: for each, the output of its beginning and its last token."""

PICKLED = (".pt", ".pth", ".bin", ".ckpt", ".pkl")
"""Suffixes of files that torch pickles. Reading one may run code, so none is read."""

FORMAT = "diptych-model"
FORMAT_VERSION = 1

EXPECTED = "expected a model folder, a run directory or one of its checkpoints"
LATER_FIELDS = ("resize_mode", "interpolation", "fill_colour", "initial_weights", "freeze")
"""Fields that folders lack which were written before they existed, or that say nothing about the weights; they have
the default there."""


def model_folder(path: str | Path, *, ema: bool = False) -> Path:
    """The model folder at a path: the path itself, or inside a checkpoint, or inside a run's newest valid checkpoint.

    ema: give the folder of the averaged weights, which only checkpoints have.

    Raises:
        ValueError: the path is none of the three, or has no averaged weights.
        OSError: a file of the checkpoint cannot be read.
    """
    path = local_path(path)
    part = EMA if ema else MODEL
    if not path.exists():
        raise no_such_path(path, EXPECTED)
    if not path.is_dir():
        raise UserError(f"{path} is not a folder; {EXPECTED}")
    if (path / MANIFEST).is_file() and (path / MODEL).is_dir():  # a checkpoint, which has a config.json too
        verify(path, f"{part}/")
        return _part_of(path, part)
    if is_model_folder(path):
        if ema:
            raise UserError(f"{path} is a model folder; averaged weights (EMA) are in a run or one of its checkpoints")
        return path
    newest, faults = newest_valid(path / "checkpoints", f"{part}/")
    if newest is not None:
        for fault in faults:
            logger.warning("skipped a damaged checkpoint: %s", fault)
        return _part_of(newest, part)
    if faults:
        raise UserError(f"{path} has no valid checkpoint; the newest: {faults[0]}")
    raise UserError(
        f"{path} contains neither a model ({CONFIG_FILE}, {WEIGHTS_FILE}, {VOCABULARY_FILE}) "
        f"nor a complete checkpoint (checkpoints/step_*/{MANIFEST})"
    )


def _part_of(checkpoint: Path, part: str) -> Path:
    if part == EMA and not (checkpoint / EMA).is_dir():
        raise UserError(f"{checkpoint} has no averaged weights (EMA): its run was trained without training.ema_decay")
    return checkpoint / part


def run_directory(model: Path) -> Path | None:
    """The run directory that the user named directly or by one of its checkpoints; None for a model folder."""
    if (model / MANIFEST).is_file():
        run = model.absolute().parent.parent
        return run if (run / "config.yaml").is_file() else None
    return model if model_folder(model) != model else None


def save_model_folder(folder: str | Path, state: dict[str, Tensor], config: ModelConfig, tokenizer: Tokenizer) -> None:
    """Write weights, config and vocabulary into a folder and wait until they are on the disk; create the folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_tensors(weights, folder / WEIGHTS_FILE)
    for name, text in describing_files(config, tokenizer).items():
        (folder / name).write_text(text, encoding="utf-8")
    for name in (WEIGHTS_FILE, CONFIG_FILE, VOCABULARY_FILE, "."):
        flush(folder / name)


def describing_files(config: ModelConfig, tokenizer: Tokenizer, words: WordLoss | None = None) -> dict[str, str]:
    """Name → content of the files of a model folder that describe its weights.

    words: what the outputs mean, for a model that predicts words.
    """
    # The path of a run's initial weights is of no use to others who read the model, and lies on another machine.
    described = dataclasses.asdict(dataclasses.replace(config, initial_weights=None))
    del described["image"]["initial_weights"]
    del described["freeze"]  # what training left as it was says nothing about the model
    document: dict[str, Any] = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "vocab_size": tokenizer.vocab_size,
        "model": described,
    }
    files = {VOCABULARY_FILE: tokenizer.as_json()}
    if words is not None:
        document["words"] = {"loss": words.name}
    if isinstance(words, VisualNgrams):
        document["words"] |= {"longest": words.longest, "smoothing": words.smoothing}
        files[NGRAMS_FILE] = json.dumps(words.ngrams.tolist()) + "\n"
    return {CONFIG_FILE: json.dumps(document, indent=2) + "\n", **files}


def is_model_folder(path: Path) -> bool:
    return any((path / name).is_file() for name in (CONFIG_FILE, WEIGHTS_FILE, OPEN_CLIPS_CONFIG_FILE))


def _is_open_clips(folder: Path) -> bool:
    return (folder / OPEN_CLIPS_CONFIG_FILE).is_file()


def weights_of(folder: Path) -> Path:
    """The file of a model folder that has its weights."""
    return folder / (OPEN_CLIPS_WEIGHTS_FILE if _is_open_clips(folder) else WEIGHTS_FILE)


def vocabulary_of(folder: Path) -> str:
    """The vocabulary of a model folder, as `load_tokenizer` takes it; CLIP's if open_clip's folder contains none."""
    file = folder / VOCABULARY_FILE
    return "clip" if _is_open_clips(folder) and not file.is_file() else str(file)


def read_description(folder: Path) -> tuple[ModelConfig, Tokenizer]:
    """Config and tokenizer of a model folder, ours or open_clip's.

    Raises:
        UserError: a file is missing or damaged, or they do not fit together.
    """
    if _is_open_clips(folder):
        config, vocab_size = read_open_clip_config(folder)
    else:
        _refuse_hugging_face(folder)
        for name in (CONFIG_FILE, WEIGHTS_FILE, VOCABULARY_FILE):
            if not (folder / name).is_file():
                raise UserError(f"{folder} is not a complete model folder: {name} is missing")
        config, vocab_size = read_config(folder / CONFIG_FILE)
        if predicts_words(folder):
            raise UserError(
                f"{folder} is a model that predicts words (loss.name {_words(folder)['loss']}): it gives no embeddings "
                f"of texts, so it can only be measured, by `diptych evaluate --zero-shot` and `--linear-probe`"
            )
    vocabulary = vocabulary_of(folder)
    tokenizer = load_tokenizer(vocabulary)
    if tokenizer.vocab_size != vocab_size:
        raise UserError(
            f"{folder} has a model of {vocab_size} tokens, and its vocabulary {vocabulary} has {tokenizer.vocab_size}: "
            f"put the vocabulary that it was trained with there as {VOCABULARY_FILE}"
        )
    return config, tokenizer


def predicts_words(folder: Path) -> bool:
    """Whether a model folder of ours has a model that predicts words, instead of a dual encoder."""
    return bool(_words(folder))


def _words(folder: Path) -> dict[str, Any]:
    """What config.json says about predicted words; empty for a dual encoder, and for a file that cannot be read."""
    words = _document(folder).get("words")
    return words if isinstance(words, dict) else {}


def _document(folder: Path) -> dict[str, Any]:
    """config.json; empty if it cannot be read, which `read_config` reports."""
    try:
        document = parse_json((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (ValueError, OSError):
        return {}
    return document if isinstance(document, dict) else {}


def read_word_predictor(folder: Path) -> tuple[dict[str, Tensor], ModelConfig, Tokenizer, WordLoss]:
    """Weights, config and tokenizer of a model that predicts words, and what its outputs mean.

    Raises:
        ValueError: a file is missing or damaged, or they do not fit together.
    """
    config, _ = read_config(folder / CONFIG_FILE)
    for name in (WEIGHTS_FILE, VOCABULARY_FILE):
        if not (folder / name).is_file():
            raise UserError(f"{folder} is not a complete model folder: {name} is missing")
    tokenizer = load_tokenizer(str(folder / VOCABULARY_FILE))
    described = _words(folder)
    try:
        words: WordLoss = BagOfWords(tokenizer.vocab_size)
        if described["loss"] == VisualNgrams.name:
            ngrams = parse_json((folder / NGRAMS_FILE).read_text(encoding="utf-8"))
            words = VisualNgrams(tokenizer.vocab_size, ngrams, described["longest"], described["smoothing"])
    except (ValueError, LookupError, TypeError, RuntimeError, OSError) as error:
        raise UserError(f"{folder}: {CONFIG_FILE} or {NGRAMS_FILE} is damaged: {error}") from error
    state = read_tensors(folder / WEIGHTS_FILE)
    try:
        check_tensors(state, word_predictor_shapes(config, words.num_outputs))
    except UserError as error:
        raise UserError(f"{folder / WEIGHTS_FILE}: {error}") from error
    return state, config, tokenizer, words


def conversion_of(file: Path) -> str:
    """The shell command that converts a pickled file to safetensors."""
    return (
        f'python -c "from torch import load; from safetensors.torch import save_file; '
        f"w = load('{file}', map_location='cpu'); w = w.get('state_dict', w); "
        f"save_file({{k.removeprefix('module.'): v.contiguous() for k, v in w.items()}}, "
        f"'{file.with_suffix('.safetensors')}')\""
    )


def read_model_folder(folder: str | Path) -> tuple[dict[str, Tensor], ModelConfig, Tokenizer]:
    """Weights, config and tokenizer of a model folder, ours or open_clip's, checked against each other.

    Raises:
        ValueError: a file is missing or damaged, or they do not fit together.
    """
    folder = Path(folder)
    weights = weights_of(folder)
    if _is_open_clips(folder) and not weights.is_file():
        _refuse_pickled(folder)
    config, tokenizer = read_description(folder)
    state = load_open_clip(folder)[0] if _is_open_clips(folder) else read_tensors(weights)
    try:
        check_tensors(state, expected_shapes(config, tokenizer.vocab_size, has_logit_bias="logit_bias" in state))
    except UserError as error:
        raise UserError(f"{weights}: {error}") from error
    return state, config, tokenizer


def _refuse_pickled(folder: Path) -> None:
    """Raise UserError, with the command that converts them, if the folder's weights are pickled."""
    pickled = [path for path in sorted(folder.iterdir()) if path.suffix in PICKLED]
    if pickled:
        raise UserError(
            f"{folder} has no {OPEN_CLIPS_WEIGHTS_FILE}, and {pickled[0].name} may hold code, which is never run; "
            f"convert it with `{conversion_of(pickled[0])}` and name the result {OPEN_CLIPS_WEIGHTS_FILE}"
        )


def _refuse_hugging_face(folder: Path) -> None:
    """Raise UserError, naming the layout to use instead, if transformers saved the model."""
    document = _document(folder)
    if {"model_type", "architectures"} & set(document):
        raise UserError(
            f"{folder} is a model of Hugging Face's transformers ({document.get('model_type')}), whose layout is not "
            f"read; take the same model in open_clip's layout, with {OPEN_CLIPS_CONFIG_FILE} and "
            f"{OPEN_CLIPS_WEIGHTS_FILE}"
        )


def read_config(path: Path) -> tuple[ModelConfig, int]:
    """The model's config and the size of its vocabulary."""
    try:
        document = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise UserError(f'{path} does not describe a Diptych model: expected "format": "{FORMAT}"')
    if document.get("version") != FORMAT_VERSION:
        version = document.get("version")
        raise UserError(f"{path} has format version {version}, this Diptych reads {FORMAT_VERSION}")
    try:
        config = rebuild(ModelConfig, document.get("model"), "model")
        return config, rebuild(int, document.get("vocab_size"), "vocab_size")
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def rebuild(wanted: Any, value: Any, where: str) -> Any:
    """Convert a JSON value to a field's type: a mapping to its dataclass, a list to a tuple; the rest stays.

    Raises:
        ValueError: the value does not have this type.
    """
    if dataclasses.is_dataclass(wanted):
        return rebuild_dataclass(wanted, value, where)
    if get_origin(wanted) is Literal:
        if value not in get_args(wanted):
            raise UserError(f"{where} is {value!r}, expected one of {', '.join(get_args(wanted))}")
        return value
    if get_origin(wanted) is tuple:
        kinds = get_args(wanted)
        if not isinstance(value, list) or len(value) != len(kinds):
            raise UserError(f"{where} is {value!r}, expected a list of {len(kinds)}")
        return tuple(_of_type(kind, item, where) for kind, item in zip(kinds, value, strict=True))
    value = _of_type(wanted, value, where)
    if wanted is int and value < 1:
        raise UserError(f"{where} is {value}, expected at least 1: it is a size")
    return value


def _of_type(wanted: Any, value: Any, where: str) -> Any:
    if wanted is float and type(value) is int:
        return float(value)
    allowed = get_args(wanted) if get_origin(wanted) is UnionType else (get_origin(wanted) or wanted,)
    if type(value) not in allowed:
        raise UserError(f"{where} is {value!r}, expected {' or '.join(kind.__name__ for kind in allowed)}")
    return value


def rebuild_dataclass(wanted: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise UserError(f"{where} is {value!r}, expected a mapping")
    types = get_type_hints(wanted)
    if unknown := sorted(value.keys() - types.keys()):
        raise UserError(f"{where}.{unknown[0]} is unknown; expected {', '.join(types)}")
    if missing := sorted(types.keys() - value.keys() - set(LATER_FIELDS)):
        raise UserError(f"{where}.{missing[0]} is missing")
    return wanted(**{name: rebuild(types[name], value[name], f"{where}.{name}") for name in types if name in value})
