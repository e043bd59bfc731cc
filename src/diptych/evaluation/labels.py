"""The labels of pictures, and which class each of them is."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from diptych.errors import UserError
from diptych.evaluation.installed_prompts import WORDNET_ID, imagenet_classes
from diptych.evaluation.pictures import Pictures
from diptych.evaluation.similarity import Array
from diptych.terminal import counted


def named(pictures: Pictures, class_names: Sequence[str]) -> Pictures:
    """Replace labels that are numbers of classes, or WordNet ids of ImageNet's classes, by class names.

    Raises:
        ValueError: a number is larger than that of the last class.
    """
    if not pictures.labels_are_numbers:
        return _without_ids(pictures, class_names)
    labels = labels_in(pictures)
    if pictures.label_width not in (0, len(class_names)):
        raise UserError(
            f"{pictures.location} has arrays of {pictures.label_width} labels, and there are "
            f"{counted(len(class_names), 'class')}; give --classes with all of them, in the order of the arrays"
        )
    if labels <= set(class_names):  # the classes are called by numbers, as in MNIST
        return replace(pictures, labels_are_numbers=False)
    highest = max(map(int, labels))
    if highest >= len(class_names):
        raise UserError(
            f"{pictures.location} has class number {highest}, beyond the {counted(len(class_names), 'class')}, "
            "numbered from 0; give --classes with all of them, in the order of the numbers"
        )
    return replace(
        pictures,
        labels=tuple(class_names[int(label)] for label in pictures.labels),
        label_sets=tuple(tuple(class_names[int(label)] for label in each) for each in pictures.label_sets),
        labels_are_numbers=False,
    )


def labels_in(pictures: Pictures) -> set[str]:
    """The different labels of all pictures, of which each has one or any number."""
    return {*pictures.labels, *(label for each in pictures.label_sets for label in each)}


def label_numbers(pictures: Pictures, class_names: Sequence[str]) -> Array:
    """i64[pictures]: the place of each label among the classes.

    Raises:
        ValueError: a label is not one of the classes.
    """
    places = {name: place for place, name in enumerate(class_names)}
    if unknown := sorted(labels_in(pictures) - places.keys()):
        near = difflib.get_close_matches(unknown[0], class_names, n=1)
        raise UserError(
            f"{pictures.location}: label {unknown[0]!r} is none of the {counted(len(class_names), 'class')} "
            f"({counted(len(unknown), 'such label')}); labels must equal the class names, or the `name` of a class "
            "that has several `names`" + (f"; did you mean {near[0]!r}?" if near else "")
        )
    return np.array([places[label] for label in pictures.labels], dtype=np.int64)


def _without_ids(pictures: Pictures, class_names: Sequence[str]) -> Pictures:
    """Replace each WordNet id that is no class by ImageNet's name for it, if that is one."""
    ids = {label for label in labels_in(pictures) - {*class_names} if WORDNET_ID.fullmatch(label)}
    known = imagenet_classes() if ids else {}
    name_of = {each: known[each].name for each in ids if each in known and known[each].name in class_names}
    return replace(
        pictures,
        labels=tuple(name_of.get(label, label) for label in pictures.labels),
        label_sets=tuple(tuple(name_of.get(label, label) for label in each) for each in pictures.label_sets),
    )
