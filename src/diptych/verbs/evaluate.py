"""Measure a model: zero-shot accuracy, retrieval, and linear classifiers to compare with."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from diptych.command_line import add_ema_argument, path_argument
from diptych.data.shards import ShardIndex
from diptych.errors import UserError
from diptych.evaluation import EVALUATORS
from diptych.evaluation.linear_probe import fit_linear_probe, fit_pixel_baseline
from diptych.evaluation.picture_sources import open_captioned, open_labelled
from diptych.evaluation.pictures import (
    Embedded,
    Embedder,
    PictureEncoder,
    Pictures,
    formats_by_name,
    in_utf8,
    left_out_by_reason,
    named,
    writable,
)
from diptych.evaluation.prompts import DEFAULT_TEMPLATE, Prompts, build_classifier, load_prompts, make_prompts
from diptych.evaluation.results_file import FORMAT, merged, named_after, read_results, write_results
from diptych.evaluation.tables import readable
from diptych.evaluation.training_data import seen_in_training, training_index
from diptych.evaluation.zero_shot import label_numbers
from diptych.files import check_writable, read_lines, read_text
from diptych.report import parse_funnel, write_report
from diptych.run_dir import RunDir
from diptych.terminal import printable
from diptych.training.wandb_results import log_results

LIBRARIES = ("diptych", "torch", "timm", "numpy", "pillow", "scikit-learn")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", type=path_argument, metavar="RUN", help="run directory (its newest checkpoint) or model folder"
    )
    labelled = "folder with a subfolder for each class, .csv/.parquet table of path and label, or shards"
    parser.add_argument(
        "--zero-shot",
        metavar="[NAME=]DATA",
        action="append",
        default=[],
        help=f"{labelled} (json or cls labels); may be given repeatedly",
    )
    parser.add_argument("--classes", metavar="YAML", help="class names and prompt templates; default: the labels found")
    parser.add_argument("--label-key", metavar="KEY", default="label", help="column or json key of the label (label)")
    parser.add_argument(
        "--retrieval",
        metavar="[NAME=]DATA",
        action="append",
        default=[],
        help="pictures with captions: folder with a .txt or .json for each, table of path and caption, or shards",
    )
    parser.add_argument("--caption-key", metavar="KEY", help="column or json key of the caption or list of captions")
    parser.add_argument(
        "--linear-probe", metavar="TRAIN", help="labelled pictures to fit on embeddings, for comparison"
    )
    parser.add_argument("--pixel-baseline", metavar="TRAIN", help="labelled pictures to fit on raw pixels instead")
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
    parser.add_argument("--device", help="cpu, cuda, cuda:1 ... (the GPU where there is one)")


def run(arguments: argparse.Namespace) -> None:
    run_dir = _run_dir(arguments.model)
    if arguments.report and run_dir is None:
        raise UserError(f"--report needs a run directory, and {arguments.model} is a model folder")
    way_out = "name a readable text file with --credits, or leave it out"
    credits_lines = read_lines(arguments.credits, way_out) if arguments.credits else []
    funnel = _funnel(arguments.funnel) if arguments.funnel else []

    # All data sets are opened first, so that a mistake in the last one does not cost the time of the others.
    suffix = " (EMA)" if arguments.ema else ""  # kept apart from the results of the weights themselves
    labelled = _open(arguments.zero_shot, lambda location: open_labelled(location, arguments.label_key), suffix)
    captioned = _open(arguments.retrieval, lambda location: open_captioned(location, arguments.caption_key), suffix)
    if not labelled and not captioned:
        raise UserError("nothing to evaluate; give --zero-shot DATA, --retrieval DATA or both")
    if (arguments.linear_probe or arguments.pixel_baseline) and not labelled:
        raise UserError("--linear-probe and --pixel-baseline are measured on --zero-shot DATA; give that too")
    prompts = _prompts(arguments.classes, labelled)
    labelled = {name: named(pictures, prompts.class_names) for name, pictures in labelled.items()}
    for pictures in labelled.values():
        label_numbers(pictures, prompts.class_names)
    trains = {
        name: named(in_utf8(open_labelled(location, arguments.label_key)), prompts.class_names)
        for name, location in (
            ("linear_probe", arguments.linear_probe),
            ("pixel_baseline", arguments.pixel_baseline),
        )
        if location
    }

    destination = arguments.json or (run_dir / "evaluation.json" if run_dir else None)
    if destination is not None:
        read_results(destination)
        check_writable(destination, "make room there, or name another file with --json")
    if arguments.report and run_dir:
        check_writable(run_dir / "report.html", "make room there, or leave out --report")
    measured = evaluation = _evaluate(arguments, labelled, captioned, prompts, trains)
    print(readable(evaluation))
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


def _evaluate(
    arguments: argparse.Namespace,
    labelled: Mapping[str, Pictures],
    captioned: Mapping[str, Pictures],
    prompts: Prompts,
    trains: Mapping[str, Pictures],
) -> dict[str, Any]:
    from diptych.encoder import load
    from diptych.model_folder import model_folder

    encoder = load(arguments.model, arguments.device, ema=arguments.ema)
    embedded = Embedder(encoder)
    about = {
        "model": str(model_folder(arguments.model, ema=arguments.ema)),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    run_dir = _run_dir(arguments.model)
    training = training_index(run_dir) if run_dir else None
    evaluation: dict[str, Any] = {"format": FORMAT, **about, "versions": dict(_versions())}
    if labelled:
        classifier = build_classifier(encoder, prompts.classes, prompts.templates)
        zero_shot = EVALUATORS["zero_shot"]
        evaluation["templates"] = list(prompts.templates)
        evaluation["zero_shot"] = {
            name: {
                **about,
                **zero_shot(encoder, each, prompts.class_names, classifier, embedded=embedded(each)),
                **_facts(each, embedded(each), training),
            }
            for name, each in labelled.items()
        }
    if captioned:
        retrieval = EVALUATORS["retrieval"]
        evaluation["retrieval"] = {
            name: {
                **about,
                **retrieval(encoder, each, embedded=embedded(each)),
                **_facts(each, embedded(each), training),
            }
            for name, each in captioned.items()
        }
    for method, train in trains.items():
        if method == "linear_probe":
            features: PictureEncoder = encoder
            features_of = embedded
            probe = fit_linear_probe(encoder, train, embedded=embedded(train))
        else:
            features, probe = fit_pixel_baseline(train)
            features_of = Embedder(features)
        linear_probe = EVALUATORS["linear_probe"]
        evaluation[method] = {
            name: {**about, **linear_probe(features, each, probe, embedded=features_of(each))}
            for name, each in labelled.items()
        }
    return evaluation


def _facts(pictures: Pictures, embedded: Embedded, training: ShardIndex | None) -> dict[str, Any]:
    """Facts about the pictures: their formats, what was left out, whether the run was trained on them."""
    return {
        "formats": formats_by_name(pictures),
        "left_out": left_out_by_reason(pictures.left_out),
        **seen_in_training(pictures, embedded.kept, training),
    }


def _run_dir(model: Path) -> Path | None:
    """The run directory that the user named directly or by one of its checkpoints; None for a model folder."""
    from diptych.checkpoint_folder import MANIFEST
    from diptych.model_folder import model_folder

    if (model / MANIFEST).is_file():
        run = model.absolute().parent.parent
        return run if (run / "config.yaml").is_file() else None
    return model if model_folder(model) != model else None


def _older_checkpoint(model: Path) -> str | None:
    """The name of the checkpoint that the user gave, if it is not its run's newest; else None."""
    from diptych.checkpoint_folder import checkpoints

    model = model.absolute()
    newer = [each.name for each in checkpoints(model.parent)]
    return model.name if model.name in newer[1:] else None


def _open(arguments: Sequence[str], opened: Callable[[str], Pictures], suffix: str) -> dict[str, Pictures]:
    """Open each `[NAME=]DATA`, by name; `suffix` is added to a name that the user did not give."""
    found: dict[str, Pictures] = {}
    for argument in arguments:
        name, equals, location = argument.partition("=")
        if not equals or os.sep in name or os.path.exists(argument):
            name, location = Path(argument).stem + suffix, argument
        name = writable(name)
        if name in found:
            raise UserError(f"two data sets are called {name!r}; name one differently: {name}2={location}")
        found[name] = in_utf8(opened(location))
    return found


def _prompts(classes: str | None, labelled: Mapping[str, Pictures]) -> Prompts:
    if classes is not None:
        return load_prompts(classes)
    if numbered := [pictures.location for pictures in labelled.values() if pictures.labels_are_numbers]:
        raise UserError(
            f"{numbered[0]} gives the numbers of its classes and no names; name them in the order of the "
            "numbers with --classes YAML, or name a json key that has the names with --label-key"
        )
    labels = sorted({label for pictures in labelled.values() for label in pictures.labels})
    return make_prompts(labels, [DEFAULT_TEMPLATE]) if labels else Prompts((), ())


def _versions() -> Iterator[tuple[str, str]]:
    for library in LIBRARIES:
        try:
            yield library, version(library)
        except PackageNotFoundError:
            yield library, "not installed"


def _funnel(path: Path) -> list[dict[str, Any]]:
    text = read_text(path, "name a readable JSON file with --funnel, or leave it out")
    try:
        return parse_funnel(text)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
