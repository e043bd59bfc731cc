"""Suites: lists of data sets, each with its measure, that several models are compared on."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from diptych.errors import UserError
from diptych.evaluation.suites.measures import MEASURES
from diptych.files import read_text
from diptych.terminal import unknown_word
from diptych.yaml_documents import parse_yaml

SUITES = ("clip", "datacomp")
"""The suites that come with diptych; any other is a YAML file of the user."""

ALL = "all"
"""The group of all data sets."""
DOWNLOAD = "hf download --repo-type dataset {hub} --local-dir DIR/{name}"

RANGES: Mapping[str, tuple[float, float, str]] = {
    "chance": (0, 1, "a share from 0 to 1, such as 0.25 for 25 %"),
    "classes": (1, math.inf, "at least 1"),
    "pictures": (1, math.inf, "at least 1"),
    "subgroup_column": (0, math.inf, "0 or more"),
}
"""Key → lowest value, highest value, what is expected."""


@dataclass(frozen=True)
class SuiteDataSet:
    """One data set of a suite; `clip.yaml` explains the keys."""

    name: str
    metric: str = ""
    title: str = ""
    group: str = "other"
    classes: int | None = None
    pictures: int | None = None
    chance: float | None = None
    hub: str = ""
    get: str = ""
    data: str = ""
    prompts: str = ""
    benchmark_name: str = ""
    label_key: str = "label"
    caption_key: str = ""
    subgroup_column: int | None = None
    subgroups_left_out: tuple[int, ...] = ()
    published: tuple[float | None, ...] = ()

    @property
    def folders(self) -> tuple[str, ...]:
        """The names that its folder may have."""
        return (self.name, *([self.hub.rpartition("/")[2]] if self.hub else []))

    @property
    def where_to_get(self) -> str:
        """One line that says how to get the data; empty if the suite does not say it."""
        return DOWNLOAD.format(hub=self.hub, name=self.name) if self.hub else self.get


@dataclass(frozen=True)
class Suite:
    """Data sets and what others published of them."""

    name: str
    title: str
    data_sets: tuple[SuiteDataSet, ...]
    published_models: tuple[str, ...] = ()
    published_source: str = ""
    folder: Path = field(default_factory=Path)
    """What paths in the file are relative to."""

    def published(self, model: str) -> Mapping[str, float]:
        """The published values of one model as shares: data set → value; without those that are not known."""
        place = self.published_models.index(model)
        values = {each.name: each.published[place] for each in self.data_sets if each.published}
        return {name: round(value / 100, 6) for name, value in values.items() if value is not None}


def load_suite(name: str) -> Suite:
    """Read a suite that comes with diptych, by its name, or a YAML file.

    Raises:
        UserError: there is no such suite, or the file has another form; the message says what to write instead.
    """
    if name in SUITES:
        text = (resources.files("diptych.evaluation.suites") / f"{name}.yaml").read_text(encoding="utf-8")
        return parse_suite(text, name, Path(), name)
    path = Path(name)
    if not path.is_file() and path.suffix not in (".yaml", ".yml"):
        raise UserError(f"{unknown_word('suite', name, SUITES)}; a suite of your own is the path of a YAML file")
    text = read_text(path, "expected a YAML file that describes a suite")
    return parse_suite(text, path.stem, path.parent, str(path))


def parse_suite(text: str, name: str, folder: Path, where: str) -> Suite:
    """The suite that a YAML text describes. where: what messages call the file."""
    try:
        document = parse_yaml(text)
    except yaml.YAMLError as error:
        raise UserError(f"{where} cannot be read as YAML: {' '.join(str(error).split())}") from error
    try:
        document = _mapping(document, "the file", ("title", "published", "data_sets"))
        published = _mapping(document.get("published") or {}, "published", ("source", "models"))
        models = tuple(_list_of(str, published.get("models") or [], "published: models"))
        sets = document.get("data_sets")
        if not isinstance(sets, dict) or not sets:
            raise UserError("data_sets is missing or empty; expected NAME: {metric: top1} for each data set")
        return Suite(
            name,
            str(document.get("title") or name),
            tuple(_data_set(str(each), entry, len(models)) for each, entry in sets.items()),
            models,
            str(published.get("source") or ""),
            folder,
        )
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _data_set(name: str, entry: Any, num_models: int) -> SuiteDataSet:
    where = f"data set {name}"
    if "/" in name or name in ("", ".", ".."):
        raise UserError(f"{where}: expected a name that a folder can have")
    fields = {each.name: each for each in dataclasses.fields(SuiteDataSet) if each.name != "name"}
    entry = dict(_mapping(entry, where, tuple(fields)))
    for key, value in entry.items():
        entry[key] = _checked(fields[key], value, f"{where}: {key}")
    metric = entry.get("metric", "")
    if not metric:
        raise UserError(f"{where}: metric is missing; there are {', '.join(MEASURES)}")
    if metric not in MEASURES:
        raise UserError(f"{where}: {unknown_word('metric', metric, tuple(MEASURES))}")
    if MEASURES[metric].needs_subgroups and entry.get("subgroup_column") is None:
        raise UserError(f"{where}: {metric} needs subgroup_column, the column of the npy members that has the subgroup")
    if entry.get("group") == ALL:
        raise UserError(f"{where}: group is {ALL!r}, the name of the average of all; name it otherwise")
    published = entry.get("published", ())
    if published and len(published) != num_models:
        raise UserError(
            f"{where}: published has {len(published)} numbers; expected {num_models}, one for each of published: models"
        )
    return SuiteDataSet(name, **{"title": name, **entry})


def _mapping(value: Any, what: str, known: tuple[str, ...]) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{what} is {value!r}; expected a mapping with keys among {', '.join(known)}")
    for key in value:
        if key not in known:
            raise UserError(f"{what}: {unknown_word('key', str(key), known)}")
    return value


def _checked(which: dataclasses.Field[Any], value: Any, where: str) -> Any:
    """The value in the type of the field; null is the default."""
    if value is None:
        return which.default
    kind = str(which.type)
    if kind.startswith("tuple"):
        wanted = int if "int" in kind else float
        return tuple(_list_of(wanted, value, where, may_be_null="None" in kind))
    types: dict[str, tuple[type, ...]] = {"str": (str,), "int": (int,), "float": (int, float)}
    wanted_types = types[kind.split(" ")[0]]
    if not isinstance(value, wanted_types) or isinstance(value, bool):
        raise UserError(f"{where} is {value!r}; expected {'a text' if wanted_types == (str,) else 'a number'}")
    if which.name in RANGES:
        _check_range(value, RANGES[which.name], where)
    return value


def _check_range(value: Any, wanted: tuple[float, float, str], where: str) -> None:
    low, high, expected = wanted
    if not low <= value <= high:
        raise UserError(f"{where} is {value!r}; expected {expected}")


def _list_of(wanted: type, value: Any, where: str, *, may_be_null: bool = False) -> list[Any]:
    kinds = (int, float) if wanted is float else (wanted,)
    nulls = (type(None),) if may_be_null else ()
    if not isinstance(value, list) or not all(isinstance(each, (*kinds, *nulls)) for each in value):
        raise UserError(f"{where} is {value!r}; expected a list of {'texts' if wanted is str else 'numbers'}")
    return value
