"""Find and open the data sets of a suite: folders as users keep them, or as CLIP_benchmark writes them.

CLIP_benchmark's folder of a data set has its test pictures in `test/0.tar`, `test/1.tar` ..., their number in
`test/nshards.txt`, and next to `test` the classes and templates, one a line, in `classnames.txt` and
`zeroshot_classification_templates.txt`. A sample has the number of its class in `.cls`, or an array with 0 or 1 for
each class in `.npy`, or captions, one a line, in `.txt`; the latter two are named in `dataset_type.txt`.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from diptych.data.shards import open_index
from diptych.data.shards_ahead import all_samples
from diptych.errors import UserError
from diptych.evaluation import EVALUATORS
from diptych.evaluation.data_sets import NEED_CLASSES, DataSet, data_set, open_data, prompts_for
from diptych.evaluation.installed_prompts import (
    IMAGENET,
    WORDNET_ID,
    imagenet_ids,
    installed_prompts,
    packages_with,
    unnamed_ids,
)
from diptych.evaluation.labels import labels_in
from diptych.evaluation.pictures import Pictures
from diptych.evaluation.prompts import DEFAULT_TEMPLATE, Prompts, distinguished, load_prompts, make_prompts
from diptych.evaluation.similarity import Array
from diptych.evaluation.suites.measures import MEASURES
from diptych.evaluation.suites.suite import Suite, SuiteDataSet
from diptych.files import local_path, read_text
from diptych.terminal import counted

CLASS_NAMES = "classnames.txt"
TEMPLATES = "zeroshot_classification_templates.txt"
NUM_SHARDS = "nshards.txt"
TYPE = "dataset_type.txt"
OWN_PROMPTS = "classes.yaml"
LABELS = "labels"
"""Where class names come from that nothing else gives."""
TYPES = {"labels": "classification", "label_sets": "multilabel", "captions": "retrieval"}
"""What an evaluator reads → what dataset_type.txt says of such data."""
KEY_OF_OPTION = {"--label-key": "label_key", "--caption-key": "caption_key", "--classes": "prompts"}
"""What messages of the readers tell the user to give → the key of a suite that is to be given instead."""


@dataclass(frozen=True)
class OpenedDataSet:
    """A data set of a suite that was found and opened."""

    about: SuiteDataSet
    data: DataSet
    prompts_from: str
    """Where the class names come from; empty for pictures with captions."""
    subgroups: Array | None = None
    """i64[pictures]: the subgroup of each picture, -1 for one that counts in none; None if the measure has none."""


def find_data(suite: Suite, data: Path | None) -> dict[str, Path | str]:
    """The data sets that are present: name → folder or location.

    Raises:
        UserError: none is present.
    """
    if data is not None and not data.is_dir():
        raise UserError(
            f"{data} {'is not a folder' if data.exists() else 'does not exist'}; "
            f"expected a folder with one folder for each data set, such as {data / suite.data_sets[0].name}"
        )
    found: dict[str, Path | str] = {}
    for each in suite.data_sets:
        if each.data:
            found[each.name] = each.data if "://" in each.data else suite.folder / local_path(each.data)
        elif data is not None:
            folders = [data / name for name in each.folders if (data / name).is_dir()]
            if folders:
                found[each.name] = folders[0]
    if not found:
        first = suite.data_sets[0]
        if data is None:
            raise UserError(
                f"suite {suite.name}: give --data DIR, which has one folder for each data set (DIR/{first.name})"
            )
        has = sorted(entry.name for entry in data.iterdir())[:3]
        raise UserError(
            f"{data} has no folder of the {counted(len(suite.data_sets), 'data set')} of suite {suite.name}; expected "
            f"{data / first.name} or the like, and there {'is ' + ', '.join(has) if has else 'is nothing'}"
        )
    return found


def open_data_set(about: SuiteDataSet, location: Path | str, suite_folder: Path) -> OpenedDataSet:
    """Open a data set with its classes.

    Raises:
        UserError: the data cannot be used, or nothing names the classes.
    """
    try:
        return _open_data_set(about, location, suite_folder)
    except UserError as error:
        message = str(error)
        for option, key in KEY_OF_OPTION.items():
            message = message.replace(option, f"`{key}:` in the suite")
        raise UserError(message) from error


def is_clip_benchmarks(folder: Path) -> bool:
    """Whether the folder is laid out as CLIP_benchmark writes one."""
    return any((folder / name).is_file() for name in (f"test/{NUM_SHARDS}", TYPE)) or any(folder.glob("test/*.tar"))


def find_prompts(
    about: SuiteDataSet, folder: Path | None, suite_folder: Path, pictures: Pictures
) -> tuple[Prompts, str]:
    """The classes and templates of a data set, and where they are from.

    They are in the YAML file that the suite names, in classes.yaml or CLIP_benchmark's text files in the data set's
    folder, or in an installed package. Otherwise the labels of the pictures are the classes.

    Raises:
        UserError: a file cannot be used, or the labels are numbers or WordNet ids that nothing names.
    """
    if about.prompts:
        path = suite_folder / local_path(about.prompts)
        return load_prompts(path), path.name
    if folder is not None and (folder / OWN_PROMPTS).is_file():
        return load_prompts(folder / OWN_PROMPTS), OWN_PROMPTS
    classes, templates, source = installed_prompts(about.benchmark_name) if about.benchmark_name else (None, None, "")
    if folder is not None and (folder / CLASS_NAMES).is_file():
        classes, source = _lines(folder / CLASS_NAMES), CLASS_NAMES
    if folder is not None and (folder / TEMPLATES).is_file():
        templates = [line.replace("{c}", "{}") for line in _lines(folder / TEMPLATES)]
    if classes is not None:
        return make_prompts(distinguished(classes), templates or [DEFAULT_TEMPLATE]), source
    ids = unnamed_ids(labels_in(pictures))
    if not pictures.labels_are_numbers and not ids:
        found = prompts_for([pictures], None)
        are_labels = labels_in(pictures) >= set(found.class_names)
        source = LABELS if are_labels else installed_prompts(IMAGENET)[2]
        return make_prompts(found.classes, templates or [DEFAULT_TEMPLATE]), source
    package = packages_with(about.benchmark_name)
    where = folder or Path(pictures.location).parent
    gives = f"WordNet ids such as {ids[0]}" if ids else "the numbers of its classes"
    raise UserError(
        f"{pictures.location} gives {gives} and no names; write them into {where / CLASS_NAMES}, "
        f"one a line in that order, or into {where / OWN_PROMPTS} (classes and templates)"
        + (f", or {package}" if package else "")
    )


def read_subgroups(location: str, column: int, left_out: Sequence[int]) -> Array:
    """i64[pictures]: a column of the npy members of shards; -1 for those left out.

    Raises:
        UserError: a sample has no such member, or no such column.
    """
    index = open_index(location)
    found = []
    for sample in all_samples(index):
        if "npy" not in sample.suffixes:
            raise UserError(f"{sample.name} has no npy member with subgroups; it has {', '.join(sample.suffixes)}")
        try:
            packed = io.BytesIO(index.read(sample, "npy")["npy"])
            row = np.lib.format.read_array(packed, allow_pickle=False).reshape(-1)
            found.append(int(row[column]))
        except (ValueError, IndexError) as error:
            raise UserError(f"{sample.name}: its npy member has no number in column {column} ({error})") from error
    groups = np.array(found, dtype=np.int64)
    groups[np.isin(groups, list(left_out))] = -1
    return groups


def _open_data_set(about: SuiteDataSet, location: Path | str, suite_folder: Path) -> OpenedDataSet:
    measure = MEASURES[about.metric]
    evaluator = EVALUATORS[measure.evaluator]
    folder = Path(location) if os.path.isdir(location) else None
    if folder is not None and not any(folder.iterdir()):
        raise UserError(f"{folder} is empty; {about.where_to_get or 'put the data there'}")
    if folder is not None and is_clip_benchmarks(folder):
        location = _test_shards(folder, evaluator.reads)
    pictures = open_data(
        str(location),
        evaluator.reads,
        label_key=about.label_key,
        caption_key=about.caption_key or None,
        fewest=evaluator.fewest_pictures,
    )
    prompts, source = Prompts((), ()), ""
    if evaluator.reads in NEED_CLASSES:
        prompts, source = find_prompts(about, folder, suite_folder, pictures)
        pictures = _numbered(pictures, prompts.class_names)
    subgroups = None
    if measure.needs_subgroups:
        assert about.subgroup_column is not None, "the suite is checked for it"
        subgroups = read_subgroups(str(location), about.subgroup_column, about.subgroups_left_out)
    return OpenedDataSet(about, data_set(pictures, prompts), source, subgroups)


def _test_shards(folder: Path, reads: str) -> str:
    """The folder of the test shards, which must be all there and of the kind that is read."""
    test = folder / "test"
    if not test.is_dir():
        raise UserError(f"{folder} has no folder test with the shards of the test pictures")
    kind = (
        read_text(folder / TYPE, "expected one word").strip().lower() if (folder / TYPE).is_file() else TYPES["labels"]
    )
    if kind != TYPES.get(reads):
        raise UserError(f"{folder / TYPE} says {kind!r}; this data set is measured on {TYPES.get(reads)!r} data")
    if (test / NUM_SHARDS).is_file():
        text = read_text(test / NUM_SHARDS, "expected the number of shards").strip()
        if not text.isdecimal():
            raise UserError(f"{test / NUM_SHARDS} contains {text[:40]!r}; expected the number of shards")
        missing = [number for number in range(int(text)) if not (test / f"{number}.tar").is_file()]
        if missing:
            raise UserError(
                f"{test} lacks {counted(len(missing), 'shard')} of {text}, the first {missing[0]}.tar; fetch it again"
            )
    return str(test)


def _numbered(pictures: Pictures, class_names: Sequence[str]) -> Pictures:
    """Replace WordNet ids by the numbers of their order, which is the order of ImageNet's classes.

    Raises:
        UserError: there are ids of only some of the classes, other than ImageNet's, so that their order gives no
            numbers.
    """
    names = sorted(set(pictures.labels))
    if not names or not all(map(WORDNET_ID.fullmatch, names)) or set(names) <= set(class_names):
        return pictures
    imagenets = imagenet_ids()
    if len(imagenets) == len(class_names) and set(names) <= set(imagenets):
        names = list(imagenets)
    if len(names) != len(class_names):
        raise UserError(
            f"{pictures.location} has the WordNet ids of {counted(len(names), 'class')}, and there are "
            f"{len(class_names):,} names; ids are matched with names in their order, so all must be there; or name "
            f"these classes in {OWN_PROMPTS}: {{name: {names[0]}, names: [...]}}"
        )
    number = {name: str(place) for place, name in enumerate(names)}
    return replace(pictures, labels=tuple(number[label] for label in pictures.labels), labels_are_numbers=True)


def _lines(path: Path) -> list[str]:
    """The stripped lines of a file, as CLIP_benchmark reads them; empty lines at the end are left out."""
    return [line.strip() for line in read_text(path, "expected one name a line").rstrip().splitlines()]
