"""Choose the label that fits each picture best, among labels that you give."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from diptych.command_line import (
    add_device_argument,
    add_ema_argument,
    add_model_argument,
    decode_argument,
    path_argument,
)
from diptych.data.picture_safety import PictureError
from diptych.errors import UserError
from diptych.evaluation.calibration import FALSE_ALARM_RATE, Calibration
from diptych.evaluation.calibration_file import read_calibration
from diptych.evaluation.left_out import in_words, left_out_by_reason
from diptych.evaluation.null_distribution import IndependentLabels
from diptych.evaluation.picture_sources import open_pictures
from diptych.evaluation.prompts import DEFAULT_TEMPLATE, Prompts, build_classifier, load_prompts, make_prompts
from diptych.evaluation.similarity import Array, similarities, softmax, unit_norm
from diptych.files import read_lines
from diptych.terminal import bar, counted, percent, printable, table

BAR_COLUMNS = 30

Answer: TypeAlias = Callable[[Array, int], dict[str, Any]]
"""(embedding f32[1 dim], number of labels) → what is printed of a picture, as JSON has it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_argument(parser)
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
    parser.add_argument(
        "--independent",
        action="store_true",
        help="judge each label by itself: several may hold, or none of these; needs `diptych calibrate` once",
    )
    parser.add_argument(
        "--false-alarm-rate",
        metavar="RATE",
        type=float,
        help="with --independent: the share of pictures that may get a label that does not hold "
        f"({FALSE_ALARM_RATE}); a lower rate finds fewer labels",
    )
    parser.add_argument("--top", metavar="N", type=int, default=5, help="labels to show (5)")
    parser.add_argument("--json", action="store_true", help="print a line of JSON for each picture")
    add_ema_argument(parser)
    add_device_argument(parser)


def run(arguments: argparse.Namespace) -> None:
    from diptych.encoder import load
    from diptych.model_folder import model_folder

    if arguments.top < 1:
        raise UserError(f"--top is {arguments.top}; expected at least 1")
    for picture in arguments.pictures:
        if not os.path.exists(picture):
            raise UserError(f"{picture} is not a file; expected a picture or a folder of pictures")
    if arguments.false_alarm_rate is not None and not arguments.independent:
        raise UserError("--false-alarm-rate belongs to --independent; give that too")
    prompts = _prompts(arguments)
    pictures = open_pictures([str(picture) for picture in arguments.pictures])
    if pictures.left_out:
        print(printable(f"left out: {in_words(left_out_by_reason(pictures.left_out))}"), file=sys.stderr)

    folder = model_folder(arguments.model, ema=arguments.ema)
    calibration = read_calibration(folder, with_null=arguments.independent)
    if arguments.independent:
        rate = _rate(arguments.false_alarm_rate, calibration)
    encoder = load(folder, arguments.device)
    classifier = build_classifier(encoder, prompts.classes, prompts.templates)
    if arguments.independent:
        answer = _independently(calibration, prompts, classifier, rate)
    else:
        answer = _by_choice(calibration.logit_scale or encoder.logit_scale, prompts, classifier)
    failures: list[str] = []
    for place, name in enumerate(pictures.names):
        try:
            image = unit_norm(encoder.embed_pictures([pictures.read(place)]))
        except (PictureError, UserError) as error:
            failures.append(f"{name}: {error}" if isinstance(error, PictureError) else str(error))
            if arguments.json:
                print(json.dumps({"picture": name, "error": str(error)}), flush=True)
            continue
        found = answer(image, arguments.top)
        if arguments.json:
            print(json.dumps({"picture": name, **found}), flush=True)
        else:
            print(("\n" if place else "") + f"{printable(name)}\n{_shown(found)}", flush=True)
    if failures:
        if len(pictures) > 1:
            failures.append(f"{len(failures)} of {counted(len(pictures), 'picture')} could not be classified")
        raise UserError("\n".join(failures))


def _rate(given: float | None, calibration: Calibration) -> float:
    """The false-alarm rate that was asked for, or the usual one; it cannot be lower than the null distribution's."""
    assert calibration.null is not None, "it was read with the calibration"
    lowest, number = calibration.null.lowest_rate, len(calibration.null.pictures)
    if given is None:
        return max(FALSE_ALARM_RATE, lowest)
    if not lowest <= given < 1:
        raise UserError(
            f"--false-alarm-rate is {given:g}; expected a share below 1, and from {lowest:.2g}, since the null "
            f"distribution has {counted(number, 'picture')}; for a lower one calibrate with more"
        )
    return given


def _prompts(arguments: argparse.Namespace) -> Prompts:
    templates = [decode_argument(template) for template in arguments.template or []]
    if arguments.classes is not None:
        prompts = load_prompts(arguments.classes)
        return make_prompts(prompts.classes, templates or prompts.templates)
    return make_prompts(_labels(arguments.labels, 1 if arguments.independent else 2), templates or [DEFAULT_TEMPLATE])


def _labels(given: Sequence[str], fewest: int) -> list[str]:
    """The labels of `--labels`: one for each option, one a line of a file, or separated by commas."""
    if len(given) > 1:
        labels = [decode_argument(label) for label in given]
    elif os.path.isfile(given[0]):
        labels = read_lines(given[0], "name a readable text file with --labels")
    else:
        labels = decode_argument(given[0]).split(",")
    labels = [label.strip() for label in labels if label.strip()]
    if len(labels) < fewest:
        needed = "two or more" if fewest > 1 else "one or more"
        raise UserError(
            f"--labels {given[0]!r} leaves nothing to choose; give {needed}, separated by commas or each with "
            "--labels, or a file with one a line"
        )
    return labels


def _by_choice(logit_scale: float, prompts: Prompts, classifier: Array) -> Answer:
    """Divide a probability of 1 among the labels."""

    def answer(image: Array, top: int) -> dict[str, Any]:
        shares = softmax(logit_scale * similarities(image, classifier)[0].astype(np.float64))
        best = np.argsort(-shares, kind="stable")[:top]
        return {"labels": [{"label": prompts.class_names[each], "probability": float(shares[each])} for each in best]}

    return answer


def _independently(calibration: Calibration, prompts: Prompts, classifier: Array, rate: float) -> Answer:
    """Judge each label by itself, so that several may hold, or none."""
    assert calibration.null is not None, "it was read with the calibration"
    names = [each.names for each in prompts.classes]
    independent = IndependentLabels(calibration.null, names, classifier)

    def answer(image: Array, top: int) -> dict[str, Any]:
        judged = independent.judge(image)
        probabilities = calibration.curve(judged.rates[0])
        holds = judged.rates_of_list[0] <= rate
        labels = [
            {
                "label": prompts.class_names[each],
                "probability": float(probabilities[each]),
                "false_alarm_rate": float(judged.rates[0, each]),
                "holds": bool(holds[each]),
            }
            for each in np.argsort(-judged.scores[0], kind="stable")[:top]
        ]
        return {
            "labels": labels,
            "none_of_these": not holds.any(),
            "lowest_rate_of_list": float(judged.rates_of_list[0].min()),
            "stated_rate": rate,
        }

    return answer


def _shown(answer: Mapping[str, Any]) -> str:
    rows = [
        [
            each["label"],
            bar(each["probability"], BAR_COLUMNS),
            percent(each["probability"]),
            *([f"false alarms {percent(each['false_alarm_rate'])}"] if "holds" in each else []),
        ]
        for each in answer["labels"]
    ]
    lines = [table(rows, align="<<><"[: len(rows[0])])]
    if "none_of_these" in answer:
        holding = [printable(each["label"]) for each in answer["labels"] if each["holds"]]
        rate = percent(answer["stated_rate"])
        lines.append(f"at a false-alarm rate of {rate} over all labels: {', '.join(holding) or 'none of these'}")
    return "\n".join(lines)
