"""Read class names and prompt templates, and build a zero-shot classifier from them (paper, section 3.1.4)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from diptych.errors import UserError
from diptych.evaluation.similarity import Array, unit_norm
from diptych.files import read_text
from diptych.terminal import counted
from diptych.yaml_documents import parse_yaml

if TYPE_CHECKING:
    from diptych.encoder import Encoder
    from diptych.evaluation.features import Features

DEFAULT_TEMPLATE = "a photo of a {}."
PROMPTS_AT_ONCE = 8_192
NUMBERED = re.compile(r"[0-9]{2,}\.[^\W\d_].*")
"""A label that begins with its number, as in folders that are to be in the order of the classes."""


@dataclass(frozen=True)
class ClassPrompt:
    name: str
    """The label in the data."""
    names: tuple[str, ...]
    """The class's names in prompts; the embeddings of several names are averaged."""


@dataclass(frozen=True)
class Prompts:
    classes: tuple[ClassPrompt, ...]
    templates: tuple[str, ...]

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(each.name for each in self.classes)


def load_prompts(path: str | Path) -> Prompts:
    """Read the classes and templates of a YAML file:

        classes: [tench, {name: n01443537, names: [goldfish, Carassius auratus]}]
        templates: ["a photo of a {}.", "a drawing of a {}."]

    Raises:
        ValueError: the file does not exist or has another form; the message says what to write instead.
    """
    text = read_text(path, "expected a YAML file with classes and templates")
    try:
        document = parse_yaml(text)
    except yaml.YAMLError as error:
        raise UserError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict) or not set(document) <= {"classes", "templates"}:
        found = ", ".join(map(str, document)) if isinstance(document, dict) else type(document).__name__
        raise UserError(f"{path} contains {found}; expected the two keys classes and templates")
    try:
        return make_prompts(document.get("classes"), document.get("templates", [DEFAULT_TEMPLATE]))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def make_prompts(classes: Any, templates: Any = (DEFAULT_TEMPLATE,)) -> Prompts:
    """Check class entries (a name, or a mapping of name and names) and templates, and make prompts of them.

    Raises:
        ValueError: a list is empty, a class is listed twice, or a template has no `{}`.
    """
    _check_list("classes", classes, 'names such as ["cat", "dog"]')
    _check_list("templates", templates, f'texts such as ["{DEFAULT_TEMPLATE}"]')
    entries = tuple(_class_prompt(entry) for entry in classes)
    counts = Counter(entry.name for entry in entries)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise UserError(
            f"class {twice[0]!r} is listed {counts[twice[0]]} times ({counted(len(twice), 'such class')}); keep one "
            "entry each, and distinguish classes with the same name by `{name: ..., names: [...]}`"
        )
    for template in templates:
        if not isinstance(template, str) or template.count("{}") != 1:
            raise UserError(
                f'template {template!r} must contain {{}} exactly once, in place of the name: "{DEFAULT_TEMPLATE}"'
            )
    return Prompts(entries, tuple(templates))


def classes_called(labels: Sequence[str]) -> list[ClassPrompt]:
    """The classes with these labels; prompts leave out the numbers if all are like `001.Black_footed_Albatross`."""
    are_numbered = all(map(NUMBERED.fullmatch, labels))
    return [
        ClassPrompt(label, (label.partition(".")[2].replace("_", " ") if are_numbered else label,)) for label in labels
    ]


def distinguished(names: Sequence[str]) -> list[ClassPrompt]:
    """Classes of a numbered list of names; two with the same name have different labels: `crane`, `crane (517)`."""
    seen: Counter[str] = Counter()
    classes = []
    for number, name in enumerate(names):
        label = f"{name} ({number})" if seen[name] else name
        seen[name] += 1
        classes.append(ClassPrompt(label, (name,)))
    return classes


def texts_of(classes: Sequence[ClassPrompt], templates: Sequence[str]) -> list[tuple[int, str]]:
    """The number of a class and a text, for each template with each of the class's names."""
    return [
        (number, template.replace("{}", name))
        for number, each in enumerate(classes)
        for name in each.names
        for template in templates
    ]


def build_classifier(encoder: Encoder | Features, classes: Sequence[ClassPrompt], templates: Sequence[str]) -> Array:
    """f32[classes dim]: for each class the mean of its prompts' unit-norm embeddings, scaled to unit norm.

    The average is taken over embeddings, not over probabilities, so that any number of templates makes one classifier.
    """
    prompts = texts_of(classes, templates)
    sums: Array | None = None
    for start in range(0, len(prompts), PROMPTS_AT_ONCE):
        part = prompts[start : start + PROMPTS_AT_ONCE]
        embeddings = unit_norm(encoder.embed_texts([text for _, text in part])).astype(np.float64)
        if sums is None:
            sums = np.zeros((len(classes), embeddings.shape[1]))
        np.add.at(sums, [number for number, _ in part], embeddings)
    assert sums is not None, "Prompts holds at least one class and one template"
    return unit_norm(sums)


def _check_list(key: str, value: Any, expected: str) -> None:
    if not value:
        raise UserError(f"{key} is empty; expected a list of {expected}")
    if not isinstance(value, (list, tuple)):
        kind = "a mapping" if isinstance(value, dict) else f"{value!r}"
        raise UserError(f"{key} is {kind}; expected a list of {expected}")


def _class_prompt(entry: Any) -> ClassPrompt:
    if isinstance(entry, ClassPrompt):
        return entry
    if isinstance(entry, dict) and set(entry) == {"name", "names"} and isinstance(entry["names"], list):
        name, names = entry["name"], entry["names"]
    else:
        name, names = entry, [entry]
    if not names or not all(isinstance(each, str) and each.strip() for each in [name, *names]):
        raise UserError(
            f"class {entry!r} is not a name; expected a text (in quotes if YAML would read it as another type) "
            "or {name: label in the data, names: [what prompts call it, ...]}"
        )
    return ClassPrompt(name, tuple(names))
