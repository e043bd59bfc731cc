"""Class names and prompt templates from installed packages that carry them; diptych carries none.

The files are read as text: importing these packages would load torch and more.
"""

from __future__ import annotations

import ast
import importlib.metadata
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from diptych.errors import UserError
from diptych.evaluation.prompts import ClassPrompt, distinguished

IMAGENET = "imagenet1k"
WORDNET_ID = re.compile(r"n[0-9]{8}")
"""What the folders of ImageNet's classes are called, such as n01440764 for tench."""
NAMED_BY_CLIP_BENCHMARK = frozenset(
    {
        "caltech101", "caltech101_vtab", "clevr_closest_object_distance", "clevr_count_all", "country211",
        "diabetic_retinopathy", "dmlab", "eurosat", "fer2013", "flowers", "gtsrb", IMAGENET,
        "kitti_closest_vehicle_distance", "mnist", "pcam", "pets", "svhn",
    }
)  # fmt: skip
"""The data sets of which clip_benchmark 1.6 has class names; of the others it has templates only."""


def installed_prompts(name: str) -> tuple[list[str] | None, list[str] | None, str]:
    """Class names and templates of a data set by CLIP_benchmark's name for it, and the package that they come from.

    Both are None if no installed package has them.
    """
    classes, templates = _of_clip_benchmark(name)
    source = "clip_benchmark"
    if name == IMAGENET and (classes is None or templates is None):
        classes, templates = _of_open_clip()
        source = "open_clip_torch"
    return classes, templates, source if classes or templates else ""


def imagenet_ids() -> tuple[str, ...]:
    """The WordNet ids of ImageNet's 1,000 classes, in the order of the classes; none if timm does not list them."""
    path = _file("timm", "imagenet_synsets.txt")
    return tuple(path.read_text(encoding="utf-8").split()) if path is not None else ()


def imagenet_classes() -> dict[str, ClassPrompt]:
    """WordNet id → class of ImageNet; empty if no installed package has the names."""
    ids, names = imagenet_ids(), installed_prompts(IMAGENET)[0] or []
    return dict(zip(ids, distinguished(names), strict=True)) if len(ids) == len(names) else {}


def unnamed_ids(labels: Iterable[str]) -> list[str]:
    """The labels that are WordNet ids and that nothing names, in order."""
    ids = sorted(filter(WORDNET_ID.fullmatch, labels))
    known = imagenet_classes() if ids else {}
    return [each for each in ids if each not in known]


def packages_with(name: str) -> str:
    """The command that installs a package with the class names of a data set; empty if no package has them."""
    if name == IMAGENET:
        return "`pip install open_clip_torch`"
    return "`pip install clip_benchmark`" if name in NAMED_BY_CLIP_BENCHMARK else ""


def _of_clip_benchmark(name: str) -> tuple[list[str] | None, list[str] | None]:
    classes = _json("clip_benchmark", "en_classnames.json").get(name)
    templates = _json("clip_benchmark", "en_zeroshot_classification_templates.json").get(name)
    return classes, [each.replace("{c}", "{}") for each in templates] if templates else None


def _of_open_clip() -> tuple[list[str] | None, list[str] | None]:
    path = _file("open_clip_torch", "zero_shot_metadata.py")
    if path is None:
        return None, None
    found: dict[str, list[str]] = {}
    for statement in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            values = statement.value.elts if isinstance(statement.value, (ast.Tuple, ast.List)) else []
            found[statement.targets[0].id] = [text for each in values if (text := _text(each)) is not None]
    return found.get("IMAGENET_CLASSNAMES"), found.get("OPENAI_IMAGENET_TEMPLATES")


def _text(node: ast.expr) -> str | None:
    """A text, or a function that puts a name into a text, as a template with {}."""
    if isinstance(node, ast.Lambda):
        node = node.body
    if isinstance(node, ast.JoinedStr):
        parts = [each.value if isinstance(each, ast.Constant) else "{}" for each in node.values]
        return "".join(map(str, parts))
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def _json(package: str, name: str) -> dict[str, Any]:
    path = _file(package, name)
    if path is None:
        return {}
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} cannot be read ({error}); install {package} again") from error
    return document if isinstance(document, dict) else {}


def _file(package: str, name: str) -> Path | None:
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    path = next((Path(str(file.locate())) for file in files if file.name == name), None)
    return path if path is not None and path.is_file() else None
