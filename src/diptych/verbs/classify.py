"""Choose the label that fits each picture best, among labels that you give."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence

import numpy as np

from diptych.command_line import add_ema_argument, decode_argument, path_argument
from diptych.data.picture_safety import PictureError
from diptych.errors import UserError
from diptych.evaluation.picture_sources import open_pictures
from diptych.evaluation.pictures import in_words, left_out_by_reason
from diptych.evaluation.prompts import DEFAULT_TEMPLATE, Prompts, build_classifier, load_prompts, make_prompts
from diptych.evaluation.similarity import Array, similarities, unit_norm
from diptych.files import read_lines
from diptych.terminal import bar, counted, percent, printable, table

BAR_COLUMNS = 30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", type=path_argument, metavar="RUN", help="run directory (its newest checkpoint) or model folder"
    )
    parser.add_argument(
        "pictures", metavar="PICTURE", nargs="+", type=path_argument, help="picture files and folders of pictures"
    )
    choice = parser.add_mutually_exclusive_group(required=True)
    choice.add_argument(
        "--labels",
        metavar='"A, B"',
        action="append",
        help="the labels to choose among, separated by commas; or a file with one a line; or repeat --labels with one "
        "label each time, which may contain commas",
    )
    choice.add_argument("--classes", metavar="YAML", help="class names and prompt templates instead")
    parser.add_argument(
        "--template",
        metavar="TEXT",
        action="append",
        help=f'prompt around a label: "{DEFAULT_TEMPLATE}" by default, as in evaluate; "{{}}" is the label alone; '
        "repeat to average",
    )
    parser.add_argument("--top", metavar="N", type=int, default=5, help="labels to show (5)")
    parser.add_argument("--json", action="store_true", help="print a line of JSON for each picture")
    add_ema_argument(parser)
    parser.add_argument("--device", help="cpu, cuda, cuda:1 ... (the GPU where there is one)")


def run(arguments: argparse.Namespace) -> None:
    from diptych.encoder import load

    if arguments.top < 1:
        raise UserError(f"--top is {arguments.top}; expected at least 1")
    for picture in arguments.pictures:
        if not os.path.exists(picture):
            raise UserError(f"{picture} is not a file; expected a picture or a folder of pictures")
    prompts = _prompts(arguments)
    pictures = open_pictures([str(picture) for picture in arguments.pictures])
    if pictures.left_out:
        print(printable(f"left out: {in_words(left_out_by_reason(pictures.left_out))}"), file=sys.stderr)

    encoder = load(arguments.model, arguments.device, ema=arguments.ema)
    classifier = build_classifier(encoder, prompts.classes, prompts.templates)
    failures: list[str] = []
    for place, name in enumerate(pictures.names):
        try:
            image = unit_norm(encoder.embed_pictures([pictures.read(place)]))
        except (PictureError, UserError) as error:
            failures.append(f"{name}: {error}" if isinstance(error, PictureError) else str(error))
            if arguments.json:
                print(json.dumps({"picture": name, "error": str(error)}), flush=True)
            continue
        shares = _probabilities(encoder.logit_scale * similarities(image, classifier)[0].astype(np.float64))
        best = [(prompts.class_names[each], float(shares[each])) for each in _best(shares, arguments.top)]
        if arguments.json:
            labels = [{"label": label, "probability": share} for label, share in best]
            print(json.dumps({"picture": name, "labels": labels}), flush=True)
        else:
            print(("\n" if place else "") + _shown(name, best), flush=True)
    if failures:
        if len(pictures) > 1:
            failures.append(f"{len(failures)} of {counted(len(pictures), 'picture')} could not be classified")
        raise UserError("\n".join(failures))


def _prompts(arguments: argparse.Namespace) -> Prompts:
    templates = [decode_argument(template) for template in arguments.template or []]
    if arguments.classes is not None:
        prompts = load_prompts(arguments.classes)
        return make_prompts(prompts.classes, templates or prompts.templates)
    return make_prompts(_labels(arguments.labels), templates or [DEFAULT_TEMPLATE])


def _labels(given: Sequence[str]) -> list[str]:
    """The labels of `--labels`: one for each option, one a line of a file, or separated by commas."""
    if len(given) > 1:
        labels = [decode_argument(label) for label in given]
    elif os.path.isfile(given[0]):
        labels = read_lines(given[0], "name a readable text file with --labels")
    else:
        labels = decode_argument(given[0]).split(",")
    labels = [label.strip() for label in labels if label.strip()]
    if len(labels) < 2:
        raise UserError(
            f"--labels {given[0]!r} leaves nothing to choose; give two or more, separated by commas or each with "
            "--labels, or a file with one a line"
        )
    return labels


def _probabilities(logits: Array) -> Array:
    weights: Array = np.exp(logits - logits.max())
    weights /= weights.sum()
    return weights


def _best(shares: Array, number: int) -> Array:
    return np.argsort(-shares, kind="stable")[:number]


def _shown(name: str, best: Sequence[tuple[str, float]]) -> str:
    rows = [[label, bar(share, BAR_COLUMNS), percent(share)] for label, share in best]
    return f"{printable(name)}\n{table(rows, align='<<>')}"
