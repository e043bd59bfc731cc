"""What a model is measured on: pictures with labels or captions, and the prompts of their classes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from diptych.errors import UserError
from diptych.evaluation.installed_prompts import (
    IMAGENET,
    WORDNET_ID,
    imagenet_classes,
    imagenet_ids,
    packages_with,
    unnamed_ids,
)
from diptych.evaluation.labels import label_numbers, labels_in, named
from diptych.evaluation.picture_sources import (
    open_captioned,
    open_cues,
    open_labelled,
    open_matched,
    open_multi_labelled,
)
from diptych.evaluation.pictures import Pictures, in_utf8, writable
from diptych.evaluation.prompts import DEFAULT_TEMPLATE, Prompts, classes_called, load_prompts, make_prompts
from diptych.terminal import counted

Reads = Literal["labels", "label_sets", "captions", "matched", "cues"]
"""What an evaluator needs with each picture: a label, any number of labels, or captions; matched are two pictures and
two captions at a time, and cues are texts that belong to some of several pictures."""
NEED_CLASSES = ("labels", "label_sets")


@dataclass(frozen=True)
class DataSet:
    """What an evaluator measures a model on."""

    pictures: Pictures
    prompts: Prompts = Prompts((), ())
    """The classes and their templates; none for pictures with captions."""
    train: Pictures | None = None
    """The pictures to fit a classifier on, for evaluators that fit one."""


def open_data(
    location: str, reads: Reads, *, label_key: str = "label", caption_key: str | None = None, fewest: int = 1
) -> Pictures:
    """Open pictures with what is read; see `open_labelled` and its neighbours.

    Raises:
        ValueError: the location is missing or empty, its pictures do not have what is read, or are fewer than `fewest`.
    """
    openers: dict[Reads, Callable[[], Pictures]] = {
        "labels": lambda: open_labelled(location, label_key),
        "label_sets": lambda: open_multi_labelled(location, label_key),
        "captions": lambda: open_captioned(location, caption_key),
        "matched": lambda: open_matched(location),
        "cues": lambda: open_cues(location),
    }
    opened = openers[reads]()
    if len(opened) < fewest:
        raise UserError(f"{location} has {counted(len(opened), 'picture')}; at least {fewest} are needed")
    return in_utf8(opened)


def open_each(given: Sequence[str], opened: Callable[[str], Pictures], suffix: str) -> dict[str, Pictures]:
    """Open each `[NAME=]DATA`, by name; `suffix` is added to a name that the user did not give."""
    found: dict[str, Pictures] = {}
    for argument in given:
        name, equals, location = argument.partition("=")
        if not equals or os.sep in name or os.path.exists(argument):
            name, location = Path(argument).stem + suffix, argument
        name = writable(name)
        if name in found:
            raise UserError(f"two data sets are called {name!r}; name one differently: {name}2={location}")
        found[name] = opened(location)
    return found


def prompts_for(labelled: Sequence[Pictures], classes: str | None) -> Prompts:
    """The classes and templates of the YAML file `classes`; without one, the labels of all pictures are the classes.

    WordNet ids, as ImageNet's folders are called, stand for the names of ImageNet's classes.

    Raises:
        UserError: the file cannot be used, or the labels are numbers or WordNet ids that only such a file can name.
    """
    if classes is not None:
        return load_prompts(classes)
    if numbered := [pictures.location for pictures in labelled if pictures.labels_are_numbers]:
        raise UserError(
            f"{numbered[0]} gives the numbers of its classes and no names; name them in the order of the "
            "numbers with --classes YAML, or name a json key that has the names with --label-key"
        )
    labels = sorted({label for pictures in labelled for label in labels_in(pictures)})
    if not labels:
        return Prompts((), ())
    if unnamed := unnamed_ids(labels):
        where = next(pictures.location for pictures in labelled if unnamed[0] in labels_in(pictures))
        package = f", or {packages_with(IMAGENET)}" if set(unnamed) <= set(imagenet_ids()) else ""
        raise UserError(
            f"{where} gives WordNet ids such as {unnamed[0]} and no names; name them with --classes YAML "
            f"(classes: [{{name: {unnamed[0]}, names: [what prompts call it]}}, ...]){package}"
        )
    known = imagenet_classes() if any(map(WORDNET_ID.fullmatch, labels)) else {}
    found = dict.fromkeys(known.get(each.name, each) for each in classes_called(labels))
    return make_prompts(list(found), [DEFAULT_TEMPLATE])


def data_set(pictures: Pictures, prompts: Prompts) -> DataSet:
    """The pictures, and with labelled ones the prompts of their classes.

    Raises:
        UserError: a label is not one of the classes.
    """
    if not pictures.labels and not pictures.label_sets:
        return DataSet(pictures)
    pictures = named(pictures, prompts.class_names)
    label_numbers(pictures, prompts.class_names)
    return DataSet(pictures, prompts)
