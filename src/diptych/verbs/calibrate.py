"""Make the probabilities of `classify` agree with your pictures, and find out what is none of the labels."""

from __future__ import annotations

import argparse
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial

from diptych.command_line import add_device_argument, add_ema_argument, add_model_argument
from diptych.errors import UserError
from diptych.evaluation.calibration import calibrate
from diptych.evaluation.calibration_file import CALIBRATION_FILE, write_calibration
from diptych.evaluation.calibration_shown import readable
from diptych.evaluation.data_sets import data_set, open_data, open_each, prompts_for
from diptych.evaluation.results_file import FORMAT, read_results, write_results
from diptych.files import check_writable
from diptych.terminal import printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_argument(parser)
    parser.add_argument(
        "--zero-shot",
        metavar="[NAME=]DATA",
        action="append",
        default=[],
        help="labelled pictures, as `evaluate` takes them, which the temperature is fitted to; may be given repeatedly",
    )
    parser.add_argument(
        "--classes",
        metavar="YAML",
        help="class names and prompt templates; default: the labels found, or ImageNet's names for its WordNet ids",
    )
    parser.add_argument("--label-key", metavar="KEY", default="label", help="column or json key of the label (label)")
    parser.add_argument(
        "--retrieval",
        metavar="[NAME=]DATA",
        action="append",
        default=[],
        help="pictures with captions, for `classify --independent` if there are no labels; may be given repeatedly",
    )
    parser.add_argument(
        "--caption-key",
        metavar="KEY",
        help="column or json key of the caption or list of captions (default: the .txt files, or the usual names)",
    )
    add_ema_argument(parser)
    add_device_argument(parser)


def run(arguments: argparse.Namespace) -> None:
    from diptych.encoder import load
    from diptych.model_folder import model_folder, run_directory

    labelled = open_each(arguments.zero_shot, partial(open_data, reads="labels", label_key=arguments.label_key), "")
    captioned = open_each(
        arguments.retrieval, partial(open_data, reads="captions", caption_key=arguments.caption_key), ""
    )
    if not labelled and not captioned:
        raise UserError("nothing to calibrate with; give --zero-shot DATA, --retrieval DATA or both")
    prompts = prompts_for(list(labelled.values()), arguments.classes)
    pictures = [data_set(each, prompts).pictures for each in (*labelled.values(), *captioned.values())]

    folder, run_dir = model_folder(arguments.model, ema=arguments.ema), run_directory(arguments.model)
    check_writable(folder / CALIBRATION_FILE, "calibrate a copy of the model (`diptych export`)")
    results = run_dir / "evaluation.json" if run_dir else None
    if results:
        read_results(results)
    found = calibrate(load(folder, arguments.device), pictures, prompts)
    about = {
        "data": [*labelled, *captioned],
        "model": str(folder),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    document = {part: about | measured for part, measured in found.document.items()}
    write_calibration(folder, replace(found, document=document))
    print(readable(document))
    print(f"\nkept in: {printable(str(folder / CALIBRATION_FILE))}")
    if results:
        earlier = read_results(results)
        both = {**earlier.get("calibration", {}), **document}
        write_results(results, {**earlier, "format": FORMAT, "calibration": both})
        print(f"numbers: {printable(str(results))}, for the report of `diptych evaluate --report`")
