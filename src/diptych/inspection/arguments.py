"""The arguments of commands that look at shards as a training config would read them."""

from __future__ import annotations

import argparse
import json

from diptych.config.load import files_and_overrides, load_config
from diptych.config.schema import RunConfig
from diptych.errors import UserError

_WITHOUT_A_FILE = ("run_dir=.", "training.total_samples=2", "training.global_batch_size=2")
"""What every config must give, and looking at shards does not depend on."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add SHARDS, --config and --seed."""
    parser.add_argument(
        "shards",
        nargs="*",
        metavar="SHARDS",
        help="folders of shards, tar files or brace patterns (default: data.train of the config)",
    )
    parser.add_argument(
        "--config",
        action="append",
        default=[],
        metavar="FILE|key=value",
        help="the training config to read them with, and settings in its place; may be given several times, merged "
        "left to right (default: the defaults of `diptych train --keys`)",
    )
    parser.add_argument("--seed", type=int, metavar="N", help="of the draw and of augmentation (default: the config's)")


def read_config(arguments: argparse.Namespace) -> RunConfig:
    """The config that `--config` gives, with the shards, and the seed, of the command line.

    Raises:
        ConfigError: it is not valid.
        UserError: neither the command line nor a config names shards.
    """
    from diptych.training.initial_weights import defaults_from_initial_weights

    files, overrides = files_and_overrides(arguments.config)
    if not files:
        overrides = [*_WITHOUT_A_FILE, *overrides]
        if not arguments.shards and not any(word.startswith("data.train=") for word in overrides):
            raise UserError("no shards; name a folder of shards, or a config whose data.train names it with --config")
    if arguments.shards:
        overrides.append(f"data.train={json.dumps(arguments.shards)}")
    if arguments.seed is not None:
        overrides.append(f"training.seed={arguments.seed}")
    loaded = load_config(files, overrides)
    if defaults := defaults_from_initial_weights(loaded):
        loaded = load_config(files, overrides, defaults=defaults)
    return loaded.config


def positive(text: str) -> int:
    """A number of samples, as an argparse type."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number
