"""Plan a run on paper: operations, memory, time and money on a number of GPUs.

Nothing is trained and no data is read, so a laptop can plan for a thousand GPUs.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict

from diptych.command_line import path_argument
from diptych.config.load import files_and_overrides, load_config
from diptych.config.schema import RunConfig
from diptych.errors import UserError
from diptych.files import check_writable, commit_file, writing
from diptych.plan.gpus import GPUS, gpu_named
from diptych.terminal import printable

CLIP_VOCABULARY = 49_408
USUAL_NUMBERS = (8, 64, 512)
WAY_OUT = "name another file with --page"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "config", nargs="+", metavar="CONFIG|key=value", help="YAML files, merged left to right, and overrides"
    )
    parser.add_argument(
        "--gpus",
        type=_numbers,
        metavar="N,N",
        help=f"numbers of GPUs (default: {','.join(map(str, USUAL_NUMBERS))}, as far as a batch has as many pairs)",
    )
    parser.add_argument(
        "--gpu", default="h100", metavar="NAME", help=f"their kind: {', '.join(GPUS)} (default: %(default)s)"
    )
    parser.add_argument(
        "--then",
        nargs="+",
        action="append",
        default=[],
        metavar="CONFIG|key=value",
        help="a run that goes on from the one before, such as on larger pictures; may be given several times",
    )
    parser.add_argument("--price", type=_positive, metavar="AMOUNT", help="of a GPU for an hour, to compute the cost")
    parser.add_argument(
        "--mean-tokens",
        type=_positive,
        metavar="N",
        help="of a caption, since padding is not computed (default: all of the context, as in published numbers)",
    )
    parser.add_argument(
        "--samples-per-core",
        type=_positive,
        metavar="N",
        help="that a core loads a second, as `diptych data stats` measures it (default: 1290 at 224 pixels)",
    )
    parser.add_argument("--page", type=path_argument, metavar="FILE.html", help="write a page with plots as well")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of text")


def run(arguments: argparse.Namespace) -> None:
    """Print the plan, and write its page if one is asked for."""
    if arguments.page is not None:
        check_writable(arguments.page, WAY_OUT)
    gpu = gpu_named(arguments.gpu)
    configs = [_read_config(words) for words in (arguments.config, *arguments.then)]
    if any(config.loss.name == "visual_ngrams" for config in configs):
        _note("the n-grams are counted at the start of a run; each of them adds an output, which is not counted here")
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from diptych.plan.on_gpus import Assumptions
    from diptych.plan.plan import make_plans
    from diptych.plan.text import describe

    numbers = arguments.gpus or _numbers_that_fit([config.training.global_batch_size for config in configs])
    assumptions = Assumptions(arguments.price, arguments.mean_tokens, arguments.samples_per_core)
    plans = [plan for config in configs for plan in make_plans(config, _vocab_size(config), gpu, numbers, assumptions)]
    if arguments.page is not None:
        from diptych.plan.page import render_plan

        page = render_plan(plans)
        with writing(arguments.page, WAY_OUT):
            commit_file(arguments.page, page)
    print(json.dumps([asdict(plan) for plan in plans]) if arguments.json else describe(plans))


def _read_config(words: list[str]) -> RunConfig:
    """The config; settings that initial weights imply are read from them if they are there."""
    files, overrides = files_and_overrides(words)
    loaded = load_config(files, overrides)
    model = loaded.config.model
    if model.initial_weights is None and model.image.initial_weights is None:
        return loaded.config
    from diptych.training.initial_weights import defaults_from_initial_weights

    try:
        return load_config(files, overrides, defaults=defaults_from_initial_weights(loaded)).config
    except (UserError, OSError) as error:
        _note(f"{error}; the towers are those of the config")
        return loaded.config


def _vocab_size(config: RunConfig) -> int:
    """The size of the config's vocabulary; of CLIP's if that one cannot be read."""
    from diptych.data.tokenizer import load_tokenizer

    try:
        return load_tokenizer(config.tokenizer.vocabulary).vocab_size
    except (UserError, OSError) as error:
        _note(f"{error}; the plan is of CLIP's {CLIP_VOCABULARY:,} tokens")
        return CLIP_VOCABULARY


def _note(line: str) -> None:
    print(f"note: {printable(line)}", file=sys.stderr)


def _numbers_that_fit(batch_sizes: Sequence[int]) -> list[int]:
    """The usual numbers of GPUs with which each GPU has at least one pair of every batch."""
    smallest = min(batch_sizes)
    return [number for number in USUAL_NUMBERS if number <= smallest] or [smallest]


def _positive(text: str) -> float:
    """A number above zero, as an argparse type."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}; expected a number above zero")
    return number


def _numbers(text: str) -> tuple[int, ...]:
    """`8,64,512`, as an argparse type."""
    try:
        numbers = tuple(int(number) for number in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}; expected whole numbers with commas, such as 8,64,512")
    return numbers
