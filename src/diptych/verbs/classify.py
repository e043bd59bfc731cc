"""Say what pictures show, choosing among labels that you give."""

from __future__ import annotations

import argparse
import os

import numpy as np

from diptych.command_line import path_argument
from diptych.errors import UserError
from diptych.evaluation.prompts import Prompts, build_classifier, load_prompts, make_prompts
from diptych.evaluation.similarity import similarities, unit_norm
from diptych.files import cannot
from diptych.terminal import bar, printable, table

BAR_COLUMNS = 30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", type=path_argument, metavar="RUN", help="run directory (its newest checkpoint) or model folder"
    )
    parser.add_argument("pictures", metavar="PICTURE", nargs="+", type=path_argument, help="jpg, png or webp")
    choice = parser.add_mutually_exclusive_group(required=True)
    choice.add_argument("--labels", metavar='"A, B"', help="what to choose among, separated by commas")
    choice.add_argument("--classes", metavar="YAML", help="class names and prompt templates instead")
    parser.add_argument(
        "--template",
        metavar="TEXT",
        action="append",
        help='prompt around a label, "a photo of {}"; repeat to average',
    )
    parser.add_argument("--top", metavar="N", type=int, default=5, help="labels to show (5)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 ... (the GPU where there is one)")


def run(arguments: argparse.Namespace) -> None:
    from diptych.encoder import load

    if arguments.top < 1:
        raise UserError(f"--top is {arguments.top}; expected at least 1")
    for picture in arguments.pictures:
        if not os.path.isfile(picture):
            raise UserError(f"{picture} is no file; expected a picture")
    prompts = _prompts(arguments)

    encoder = load(arguments.model, arguments.device)
    classifier = build_classifier(encoder, prompts.classes, prompts.templates)
    for number, picture in enumerate(arguments.pictures):
        try:
            image = unit_norm(encoder.embed_pictures([picture]))
        except OSError as error:
            raise cannot(error, picture, "read", "make it readable, or leave it out") from error
        logits = encoder.logit_scale * similarities(image, classifier)[0].astype(np.float64)
        probabilities = np.exp(logits - logits.max())
        probabilities /= probabilities.sum()
        best = np.argsort(-probabilities, kind="stable")[: arguments.top]
        rows = [
            [
                prompts.class_names[each],
                bar(probabilities[each], BAR_COLUMNS),
                f"{probabilities[each] * 100:.1f} %",
            ]
            for each in best
        ]
        print(("\n" if number else "") + printable(str(picture), 80))
        print(table(rows, align="<<>"))


def _prompts(arguments: argparse.Namespace) -> Prompts:
    if arguments.classes is not None:
        prompts = load_prompts(arguments.classes)
        return make_prompts(prompts.classes, arguments.template or prompts.templates)
    labels = [label.strip() for label in arguments.labels.split(",") if label.strip()]
    if len(labels) < 2:
        raise UserError(
            f"--labels {arguments.labels!r} leaves nothing to choose; give two or more, separated by commas"
        )
    return make_prompts(labels, arguments.template or ["{}"])
