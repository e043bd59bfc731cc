"""Measure a model on all that was asked for, with what is known of the pictures and of the training data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from diptych.evaluation import EVALUATORS
from diptych.evaluation.data_sets import DataSet
from diptych.evaluation.embedding import Embedded
from diptych.evaluation.evaluator import Result
from diptych.evaluation.features import Features
from diptych.evaluation.left_out import left_out_by_reason
from diptych.evaluation.overlap import matched_pairs, overlap
from diptych.evaluation.picture_sources import absolute
from diptych.evaluation.pictures import Pictures, fingerprint, formats_by_name
from diptych.evaluation.results_file import FORMAT
from diptych.evaluation.training_data import UNKNOWN, TrainingData, hashed_training_data, training_data

LIBRARIES = ("diptych", "torch", "timm", "numpy", "pillow", "scikit-learn")


def measure(
    model: Path, asked: Mapping[str, Mapping[str, DataSet]], *, device: str | None, ema: bool, finds_copies: bool
) -> dict[str, Any]:
    """What evaluation.json says of a run's newest checkpoint or a model folder: evaluator → data set → result.

    asked: evaluator → name → data set. ema: measure the averaged weights. finds_copies: find pictures that the run was
    trained on even if they were recoded or resized.

    Raises:
        UserError: the model or the data cannot be used.
    """
    from diptych.encoder import load_to_measure
    from diptych.model_folder import model_folder, run_directory

    run_dir = run_directory(model)
    training = _training(run_dir, finds_copies=finds_copies)
    features = Features(load_to_measure(model, device, ema=ema))
    about = {
        "model": str(model_folder(model, ema=ema)),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    evaluation: dict[str, Any] = {"format": FORMAT, **about, "versions": dict(_versions())}
    # Those that fit come first: a pass that gives features before the projection gives the embeddings too.
    for name, evaluator in sorted(EVALUATORS.items(), key=lambda item: not item[1].fits):
        for data_name, data in asked.get(name, {}).items():
            if data.prompts.templates:
                evaluation["templates"] = list(data.prompts.templates)
            result = evaluator.measure(features, data)
            if not evaluator.fits:
                result.update(_facts(data.pictures, features.pictures(data.pictures)))
                result.update(_seen(name, result, data.pictures, features.pictures(data.pictures), training))
            evaluation.setdefault(name, {})[data_name] = {**about, **result}
    return evaluation


def _training(run_dir: Path | None, *, finds_copies: bool) -> TrainingData | None:
    """The training data, to be searched for the pictures of the evaluation; None if they cannot be searched."""
    if run_dir is None:
        return None
    return hashed_training_data(run_dir) if finds_copies else training_data(run_dir)


def _facts(pictures: Pictures, embedded: Embedded) -> dict[str, Any]:
    """Facts about the pictures: where they are and which, their formats, and what was left out."""
    return {
        "location": absolute(pictures.location),
        "fingerprint": fingerprint(pictures, embedded.kept),
        "formats": formats_by_name(pictures),
        "left_out": left_out_by_reason(pictures.left_out),
    }


def _seen(
    evaluator: str, result: Result, pictures: Pictures, embedded: Embedded, training: TrainingData | None
) -> dict[str, Any]:
    """Whether the run was trained on the pictures, and if copies were looked for, what it gains from that."""
    if training is None or not len(embedded.kept):
        return UNKNOWN
    seen = training.seen(pictures, embedded.kept)
    if not training.finds_copies:
        return seen.facts()
    measured = overlap(evaluator, result, seen) or {}
    return {**seen.facts(), "overlap": {**measured, "pairs": matched_pairs(pictures, embedded.kept, seen, training)}}


def _versions() -> Iterator[tuple[str, str]]:
    for library in LIBRARIES:
        try:
            yield library, version(library)
        except PackageNotFoundError:
            yield library, "not installed"
