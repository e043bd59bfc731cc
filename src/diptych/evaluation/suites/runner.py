"""Measure several models on the data sets of a suite, and keep each result as soon as it is there."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diptych.evaluation import EVALUATORS
from diptych.evaluation.embedding import Embedded, PictureEncoder, embed
from diptych.evaluation.features import Features
from diptych.evaluation.picture_sources import state_of
from diptych.evaluation.pictures import Pictures
from diptych.evaluation.similarity import Array
from diptych.evaluation.suites.data_folders import OpenedDataSet, open_data_set
from diptych.evaluation.suites.measures import MEASURES
from diptych.evaluation.suites.suite import Suite
from diptych.files import commit_file, read_text
from diptych.terminal import shown

logger = logging.getLogger(__name__)

FORMAT = 1
Cell = dict[str, Any]
"""What is kept of a model on a data set: value, interval, chance, numbers of pictures and classes, all metrics; or, of
a measurement that failed, only the line `failed`. `kept` marks one of an earlier call."""


@dataclass(frozen=True)
class SuiteModel:
    """A model that is measured."""

    title: str
    """The head of its column."""
    location: str
    identity: str
    """A hash of its weights and settings: results of other weights are not taken for its own."""
    load: Callable[[], PictureEncoder]


@dataclass
class Results:
    """The cells of the table, kept in one file for each model and data set, written completely or not at all."""

    folder: Path

    def read(self, key: str) -> Cell | None:
        path = self.folder / f"{key}.json"
        if not path.is_file():
            return None
        try:
            cell = json.loads(read_text(path, "remove it"))
        except ValueError:
            return None
        return cell if isinstance(cell, dict) and cell.get("format") == FORMAT else None

    def write(self, key: str, cell: Mapping[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        document = json.dumps({"format": FORMAT, **cell}, ensure_ascii=False, indent=1) + "\n"
        commit_file(self.folder / f"{key}.json", document.encode("utf-8", "backslashreplace"))


class _SideBySide:
    """Several encoders as one that gives their features side by side, so that each picture is decoded once."""

    def __init__(self, encoders: Sequence[PictureEncoder]):
        self._encoders = encoders
        self.widths: list[int] = []

    def prepare(self, picture: Image.Image, /) -> tuple[Any, ...]:
        return tuple(encoder.prepare(picture) for encoder in self._encoders)

    def embed_prepared(self, prepared: Sequence[tuple[Any, ...]], /) -> Array:
        of_each = zip(self._encoders, zip(*prepared, strict=True), strict=True)
        parts = [np.asarray(encoder.embed_prepared(own)) for encoder, own in of_each]
        self.widths = [part.shape[1] for part in parts]
        return np.concatenate(parts, axis=1)


def measure_suite(
    suite: Suite,
    present: Mapping[str, Path | str],
    models: Sequence[SuiteModel],
    results: Results,
    report: Callable[[str, str, Cell], None],
) -> dict[str, dict[str, Cell]]:
    """Measure every model on every data set that is present: data set → model → cell.

    Each model is loaded at most once, and not at all if all its results are there from an earlier call. What fails
    becomes a cell with the reason.

    report: called with the titles of data set and model, and the cell, as soon as it is there; not for results that are
        kept from an earlier call. The model is empty if the data set fails for all.
    """
    loaded: dict[str, Features] = {}
    cells: dict[str, dict[str, Cell]] = {}
    for about in suite.data_sets:
        if about.name not in present:
            continue
        row = cells.setdefault(about.name, {})
        try:
            opened = open_data_set(about, present[about.name], suite.folder)
            contents = _contents(opened)
        except Exception as error:  # whatever fails costs a line, and the others are measured
            row.update({model.title: _failed(error) for model in models})
            report(about.title, "", _failed(error))
            continue
        keys = {model.title: _key(about.name, model, contents) for model in models}
        row.update({title: cell | {"kept": True} for title, key in keys.items() if (cell := results.read(key))})
        missing = [model for model in models if model.title not in row]
        for model, cell in _measured(opened, missing, loaded):
            row[model.title] = cell
            if "failed" not in cell:
                results.write(keys[model.title], {"data_set": about.name, "model": model.location, **cell})
            report(about.title, model.title, cell)
    return cells


def _measured(
    opened: OpenedDataSet, models: Sequence[SuiteModel], loaded: dict[str, Features]
) -> Iterator[tuple[SuiteModel, Cell]]:
    """Yield each model with its cell."""
    usable = []
    for model in models:
        try:
            if model.title not in loaded:
                loaded[model.title] = Features(model.load())
            usable.append(model)
        except Exception as error:
            yield model, _failed(error)
    pictures = opened.data.pictures
    together: Sequence[Embedded | None] = [None] * len(usable)
    if len(usable) > 1:
        try:
            together = embed_together([loaded[model.title].encoder for model in usable], pictures)
        except Exception as error:  # of one of them perhaps, or for lack of memory for all at once
            logger.info("%s: the models embed the pictures one after the other: %s", opened.about.title, error)
    for model, embedded in zip(usable, together, strict=True):
        features = loaded[model.title]
        try:
            own = embed(features.encoder, pictures) if embedded is None else embedded
            with features.holding(pictures, own):
                yield model, _cell(opened, features, own)
        except Exception as error:
            yield model, _failed(error)


def embed_together(encoders: Sequence[PictureEncoder], pictures: Pictures) -> list[Embedded]:
    """Embed the pictures by each encoder, as `embed` does, but decode them only once."""
    together = _SideBySide(encoders)
    embedded = embed(together, pictures)
    ends = np.cumsum(together.widths)[:-1]
    return [
        replace(embedded, embeddings=np.ascontiguousarray(part)) for part in np.split(embedded.embeddings, ends, axis=1)
    ]


def _cell(opened: OpenedDataSet, features: Features, embedded: Embedded) -> Cell:
    about = opened.about
    measure = MEASURES[about.metric]
    result = EVALUATORS[measure.evaluator].measure(features, opened.data)
    subgroups = None if opened.subgroups is None else opened.subgroups[embedded.kept]
    measured = measure.compute(result, subgroups)
    return {
        "metric": about.metric,
        "value": measured.value,
        "interval": list(measured.interval),
        "chance": measure.chance(result),
        "pictures": result["pictures"],
        "classes": len(opened.data.prompts.classes),
        "rejected": len(result["rejected"]),
        "prompts_from": opened.prompts_from,
        "metrics": result["metrics"],
        "intervals": result["intervals"],
    }


def _failed(error: Exception) -> Cell:
    logger.debug("a measurement failed", exc_info=error)
    reason = str(error) if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: {error}"
    return {"failed": shown(" ".join(reason.split()))}


def _key(data_set: str, model: SuiteModel, contents: str) -> str:
    """The name of a result: it changes with the weights and with what is measured."""
    return f"{data_set}-{_hash([model.identity, contents])}"


def _contents(opened: OpenedDataSet) -> str:
    """Identify what is measured: the pictures and their labels, the classes and the measure."""
    pictures = opened.data.pictures
    what = [
        opened.about.metric,
        pictures.names,
        state_of(pictures),
        pictures.labels,
        pictures.label_sets,
        pictures.captions,
        [(each.name, each.names) for each in opened.data.prompts.classes],
        opened.data.prompts.templates,
        [] if opened.subgroups is None else opened.subgroups.tolist(),
    ]
    if pictures.cues:
        what.append([(cue.text, cue.candidates, cue.is_right) for cue in pictures.cues])
    return _hash(what)


def _hash(what: Any) -> str:
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]
