"""Plan a run on paper: operations, memory, time and money on a number of GPUs.

Nothing is trained and no data is read, so a laptop can plan for a thousand GPUs.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from diptych.config.load import is_override, load_config
from diptych.config.schema import RunConfig
from diptych.errors import UserError
from diptych.plan.gpus import GPUS, gpu_named

CLIP_VOCABULARY = 49_408


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "config", nargs="+", metavar="CONFIG|key=value", help="YAML files, merged left to right, and overrides"
    )
    parser.add_argument(
        "--gpus", type=_numbers, default=(8, 64, 512), metavar="N,N", help="numbers of GPUs (default: 8,64,512)"
    )
    parser.add_argument(
        "--gpu", default="h100", metavar="NAME", help=f"their kind: {', '.join(GPUS)} (default: %(default)s)"
    )


def run(arguments: argparse.Namespace) -> None:
    """Print the plan."""
    gpu = gpu_named(arguments.gpu)
    config = _read_config(arguments.config)
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from diptych.plan.plan import make_plan
    from diptych.plan.text import describe

    print(describe(make_plan(config, _vocab_size(config), gpu, arguments.gpus)))


def _read_config(words: list[str]) -> RunConfig:
    """The config; settings that initial weights imply are read from them if they are there."""
    files = [Path(word) for word in words if not is_override(word)]
    overrides = [word for word in words if is_override(word)]
    loaded = load_config(files, overrides)
    if loaded.config.model.initial_weights is None:
        return loaded.config
    from diptych.training.initial_weights import defaults_from_initial_weights

    try:
        return load_config(files, overrides, defaults=defaults_from_initial_weights(loaded)).config
    except (UserError, OSError):
        return loaded.config


def _vocab_size(config: RunConfig) -> int:
    """That of the config's vocabulary, or of CLIP's if it cannot be read."""
    from diptych.data.tokenizer import load_tokenizer

    try:
        return load_tokenizer(config.tokenizer.vocabulary).vocab_size
    except (UserError, OSError):
        return CLIP_VOCABULARY


def _numbers(text: str) -> tuple[int, ...]:
    """`8,64,512`, as an argparse type."""
    try:
        numbers = tuple(int(number) for number in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}; expected whole numbers with commas, such as 8,64,512")
    return numbers
