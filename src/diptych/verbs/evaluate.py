"""Measure a model: zero-shot accuracy, retrieval, and linear classifiers to compare with."""

from __future__ import annotations

import argparse
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from diptych.command_line import add_device_argument, add_ema_argument, path_argument
from diptych.errors import UserError
from diptych.evaluation import EVALUATORS
from diptych.evaluation.data_sets import NEED_CLASSES, DataSet, data_set, open_data, open_each, prompts_for
from diptych.evaluation.evaluator import AVERAGED, Evaluator
from diptych.evaluation.labels import labels_in, named
from diptych.evaluation.measuring import measure
from diptych.evaluation.pictures import Pictures
from diptych.evaluation.results_file import merged, named_after, read_results, write_results
from diptych.evaluation.robustness import check_names, read_baseline, robustness
from diptych.evaluation.suites.command import SuiteOptions, evaluate_suite
from diptych.evaluation.tables import comparison_table, readable
from diptych.files import check_writable, read_lines, read_text
from diptych.report.page import parse_funnel, write_report
from diptych.run_dir import RunDir
from diptych.terminal import counted, printable
from diptych.training.wandb_results import log_results


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        type=path_argument,
        nargs="+",
        metavar="RUN",
        help="run directory (its newest checkpoint) or model folder; several with --suite",
    )
    for name, evaluator in EVALUATORS.items():
        if evaluator.fits:
            parser.add_argument(_option(name), metavar="TRAIN", help=evaluator.help)
        else:
            parser.add_argument(
                _option(name),
                metavar="[NAME=]DATA",
                action="append",
                default=[],
                help=f"{evaluator.help}; may be given repeatedly",
            )
    parser.add_argument(
        "--classes",
        metavar="YAML",
        help="class names and prompt templates; default: the labels found, or ImageNet's names for its WordNet ids",
    )
    parser.add_argument("--label-key", metavar="KEY", help="column or json key of the label (label)")
    parser.add_argument(
        "--caption-key",
        metavar="KEY",
        help="column or json key of the caption or list of captions (default: the .txt files, or the usual names)",
    )
    parser.add_argument(
        "--shifted-from",
        metavar="NAME",
        help="the data set of --zero-shot of which the others are shifted versions; shows how much accuracy is kept",
    )
    parser.add_argument(
        "--baseline",
        metavar="CSV",
        type=path_argument,
        help="accuracies of other models, for effective robustness: a line for each model, a column for each data set",
    )
    parser.add_argument(
        "--against",
        metavar="JSON",
        type=path_argument,
        help="evaluation.json of another model, to be compared on the same data sets by paired tests",
    )
    parser.add_argument(
        "--overlap",
        action="store_true",
        help="find pictures that the run was trained on even if they were recoded or resized, and give the accuracy "
        "on the others too; decodes each training picture once (at 256 to 512 pixels 1 to 3 ms of a core), and keeps "
        "the hashes with the shards, where `diptych-shards dedup` uses them too",
    )
    parser.add_argument(
        "--suite",
        metavar="SUITE",
        help="measure the models on a list of data sets: clip (the paper's 27), datacomp (38), or your own YAML file",
    )
    parser.add_argument(
        "--data",
        metavar="DIR",
        type=path_argument,
        help="the folder with one folder for each data set of --suite; those that are not there are listed",
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=path_argument,
        help="where the table of --suite goes (suite_NAME), as JSON, CSV, Markdown and a page, with the results so far "
        "that a stopped run goes on from",
    )
    parser.add_argument(
        "--published",
        metavar="MODEL",
        help="which of the models that the suite has published numbers of is shown next to yours (ViT-B/32)",
    )
    parser.add_argument("--json", metavar="FILE", type=path_argument, help="where the numbers go (RUN/evaluation.json)")
    parser.add_argument("--report", action="store_true", help="write RUN/report.html")
    parser.add_argument("--credits", metavar="FILE", type=path_argument, help="text file of credits for the report")
    parser.add_argument(
        "--funnel",
        metavar="FILE",
        type=path_argument,
        help="how many samples each stage before training kept, for the top of the report: a JSON list of "
        '{"stage": NAME, "kept": N, "dropped": {REASON: N}}',
    )
    add_ema_argument(parser)
    add_device_argument(parser)


def run(arguments: argparse.Namespace) -> int | None:
    if arguments.suite is not None:
        return _run_suite(arguments)
    _check_no_suite(arguments)
    arguments.model = arguments.model[0]
    _run_one(arguments)
    return None


def _run_suite(arguments: argparse.Namespace) -> int:
    of_data_sets = [*EVALUATORS, "classes", "label_key", "caption_key", "shifted_from", "baseline", "against"]
    of_results = ["json", "credits", "funnel", "overlap", "report"]
    if given := [each for each in (*of_data_sets, *of_results) if getattr(arguments, each)]:
        raise UserError(f"{_option(given[0])} does not go with --suite, which has data sets and measures of its own")
    options = {each.name: getattr(arguments, each.name) for each in fields(SuiteOptions) if each.name != "models"}
    return evaluate_suite(SuiteOptions(arguments.model, **options))


def _check_no_suite(arguments: argparse.Namespace) -> None:
    if len(arguments.model) > 1:
        models = ", ".join(map(str, arguments.model))
        raise UserError(f"several models ({models}) are compared on a suite; give --suite, or one model at a time")
    if given := [option for option in ("data", "out", "published") if getattr(arguments, option) is not None]:
        raise UserError(f"--{given[0]} belongs to --suite; give that too, or leave it out")


def _run_one(arguments: argparse.Namespace) -> None:
    from diptych.model_folder import run_directory

    run_dir = run_directory(arguments.model)
    if arguments.report and run_dir is None:
        raise UserError(f"--report needs a run directory, and {arguments.model} is a model folder")
    if arguments.overlap and run_dir is None:
        raise UserError(
            f"--overlap needs a run directory, whose config names the training data, and {arguments.model} is a model "
            "folder"
        )
    way_out = "name a readable text file with --credits, or leave it out"
    credits_lines = read_lines(arguments.credits, way_out) if arguments.credits else []
    funnel = _funnel(arguments.funnel) if arguments.funnel else []

    # All data sets are opened first, so that a mistake in the last one does not cost the time of the others.
    asked = _data_sets(arguments, AVERAGED if arguments.ema else "")
    baseline = read_baseline(arguments.baseline) if arguments.baseline else None
    if arguments.shifted_from:
        check_names(arguments.shifted_from, baseline, list(asked.get("zero_shot", ())))
    elif baseline:
        raise UserError("--baseline needs --shifted-from NAME, the data set of which the others are shifted versions")
    other = _other_results(arguments.against) if arguments.against else None
    destination = arguments.json or (run_dir / "evaluation.json" if run_dir else None)
    if destination is not None:
        read_results(destination)
        check_writable(destination, "make room there, or name another file with --json")
    if arguments.report and run_dir:
        check_writable(run_dir / "report.html", "make room there, or leave out --report")
    measured = evaluation = measure(
        arguments.model, asked, device=arguments.device, ema=arguments.ema, finds_copies=arguments.overlap
    )
    if arguments.shifted_from:
        shifts = robustness(evaluation["zero_shot"], arguments.shifted_from, baseline)
        evaluation["robustness"] = {arguments.shifted_from: shifts}
    print(readable(evaluation))
    if other is not None:
        print(f"\n{comparison_table(other, evaluation)}")
    if destination is not None:
        if arguments.json is None and (older := _older_checkpoint(arguments.model)):
            evaluation = named_after(older, evaluation)
        # Read again: another evaluation may have written its results meanwhile.
        evaluation = merged(read_results(destination), evaluation)
        write_results(destination, evaluation)
        print(f"\nnumbers: {printable(str(destination))}")
    page = None
    if arguments.report and run_dir:
        credits = [line for line in credits_lines if line.strip()]
        page = write_report(run_dir, evaluation, credits=credits, funnel=funnel)
        print(f"report:  {printable(str(page))}")
    if run_dir is not None:
        log_results(RunDir(run_dir), measured, page)


def _other_results(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path} does not exist; expected the evaluation.json of another model")
    return read_results(path, "give the evaluation.json of another model with --against")


def _option(evaluator: str) -> str:
    return "--" + evaluator.replace("_", "-")


def _data_sets(arguments: argparse.Namespace, suffix: str) -> dict[str, dict[str, DataSet]]:
    """Open what was asked for: evaluator → name → data set; `suffix` is added to names that the user did not give.

    The results of averaged weights are kept apart from those of the weights themselves by the suffix.
    """
    given = {name: getattr(arguments, name) for name in EVALUATORS}
    opened = {
        name: open_each(given[name], partial(_opened, evaluator, arguments), suffix)
        for name, evaluator in EVALUATORS.items()
        if given[name] and not evaluator.fits
    }
    fitted = {name: given[name] for name, evaluator in EVALUATORS.items() if given[name] and evaluator.fits}
    if not opened:
        options = [f"{_option(name)} DATA" for name, evaluator in EVALUATORS.items() if not evaluator.fits]
        raise UserError(f"nothing to evaluate; give {', '.join(options[:-1])} or {options[-1]}, or several of them")
    if fitted and "zero_shot" not in opened:
        raise UserError(f"{' and '.join(map(_option, fitted))}: measured on --zero-shot DATA; give that too")

    labelled = [
        each for name, sets in opened.items() if EVALUATORS[name].reads in NEED_CLASSES for each in sets.values()
    ]
    prompts = prompts_for(labelled, arguments.classes)
    asked = {name: {each: data_set(sets[each], prompts) for each in sets} for name, sets in opened.items()}
    for name, location in fitted.items():
        train = named(_opened(EVALUATORS[name], arguments, location), prompts.class_names)
        measured = {label for data in asked["zero_shot"].values() for label in labels_in(data.pictures)}
        if not measured & (fitted_to := labels_in(train)):
            raise UserError(
                f"{_option(name)} {location}: none of its {counted(len(fitted_to), 'class')}, such as "
                f"{min(fitted_to)!r}, is a class of --zero-shot, such as {min(measured)!r}; give pictures of the same "
                "classes"
            )
        asked[name] = {each: replace(data, train=train) for each, data in asked["zero_shot"].items()}
    return asked


def _opened(evaluator: Evaluator, arguments: argparse.Namespace, location: str) -> Pictures:
    return open_data(
        location,
        evaluator.reads,
        label_key=arguments.label_key or "label",
        caption_key=arguments.caption_key,
        fewest=evaluator.fewest_pictures,
    )


def _older_checkpoint(model: Path) -> str | None:
    """The name of the checkpoint that the user gave, if it is not its run's newest; else None."""
    from diptych.checkpoint_folder import checkpoints

    model = model.absolute()
    newer = [each.name for each in checkpoints(model.parent)]
    return model.name if model.name in newer[1:] else None


def _funnel(path: Path) -> list[dict[str, Any]]:
    text = read_text(path, "name a readable JSON file with --funnel, or leave it out")
    try:
        return parse_funnel(text)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
