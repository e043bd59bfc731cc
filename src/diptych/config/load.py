"""Load YAML files and key=value overrides into a RunConfig, or raise one ConfigError that names every mistake.

Files are merged left to right, then the overrides; an empty mapping removes what was set before. pydantic checks types
strictly. The origin of each value is recorded, so that errors and `diptych train --dry-run` can show it.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import typing
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from diptych.config.keys import UNIONS, all_keys, did_you_mean, meant_by
from diptych.config.problem import Keys, Problem, concerns, each_key
from diptych.config.rules import impossible
from diptych.config.schema import SIGLIP_START, RunConfig
from diptych.config.values import config_to_dict, flatten
from diptych.errors import UserError
from diptych.files import local_path
from diptych.remote_files import is_elsewhere
from diptych.yaml_documents import parse_yaml

Sources = dict[str, str]
"""Dotted key → where it was set: a file name, `command line`, `initial weights` or `loss.name sigmoid`."""


STAND_INS = {
    "run_dir": "",
    "data": {"train": ""},
    "data.train": "",
    "training": {"total_samples": 2**62, "global_batch_size": 2},
    "training.total_samples": 2**62,
    "training.global_batch_size": 2,
}

PATHS = (
    "run_dir",
    "initial_checkpoint",
    "data.train",
    "data.cache.folder",
    "data.groups.file",
    "tokenizer.vocabulary",
    "model.initial_weights",
    "model.image.initial_weights",
)
"""Keys whose values are paths, or lists of them."""
MAY_BE_ELSEWHERE = ("data.train",)
"""Of these, the keys whose values may also be addresses such as `s3://bucket/shards`."""


class ConfigError(UserError):
    """A configuration that cannot be run; the message has one line per mistake."""


@dataclasses.dataclass(frozen=True)
class LoadedConfig:
    config: RunConfig
    sources: Sources

    def source_of(self, key: str) -> str:
        """Where the value, or the mapping that contains it, was set; `default` if it was not set."""
        while key:
            if key in self.sources:
                return self.sources[key]
            key = key.rpartition(".")[0]
        return "default"


Check = Callable[[RunConfig], Iterator[Problem]]


def load_config(
    files: Sequence[Path],
    overrides: Sequence[str] = (),
    checks: Sequence[Check] = (),
    defaults: dict[str, Any] | None = None,
) -> LoadedConfig:
    """The resolved configuration of a run.

    overrides: such as `training.seed=3`; the value is YAML.
    checks: further checks that this layer cannot make, such as for a missing shard.
    defaults: values from the run's initial weights, which files and overrides replace.

    Raises:
        ConfigError: unreadable files, unknown keys, wrong types, bad values, impossible combinations; all in one error.
    """
    merged: dict[str, Any] = {}
    sources: Sources = {}
    _merge(merged, defaults or {}, sources, "initial weights")
    for file in map(local_path, files):
        _merge(merged, _read_yaml(file), sources, str(file))
    for override in overrides:
        _merge(merged, _parse_override(override), sources, "command line")
    if merged.get("run_dir") is None and files:
        merged["run_dir"] = f"runs/{files[-1].stem}"

    if isinstance(loss := merged.get("loss"), dict) and loss.get("name") == "sigmoid":
        given = merged.get("training") or {}
        start = {key: value for key, value in SIGLIP_START.items() if isinstance(given, dict) and key not in given}
        _merge(merged, {"training": start} if start else {}, sources, "loss.name sigmoid")

    config, problems = _check(merged, (impossible, *checks))
    if problems:
        raise ConfigError("\n".join(f"{_origin(sources, keys)}{problem}" for keys, problem in problems))
    return LoadedConfig(config, sources)


def files_and_overrides(words: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Sort the words of a command line as `load_config` takes them: files, and settings such as `training.seed=3`."""
    return [Path(word) for word in words if not _is_override(word)], [word for word in words if _is_override(word)]


def _is_override(word: str) -> bool:
    """Whether a word of the command line sets a key; else it names a file, such as `lr=1e-3.yaml`."""
    key, equals, _ = word.partition("=")
    if not equals or "/" in key or os.path.isfile(os.path.expanduser(word)):
        return False
    return not word.endswith((".yaml", ".yml")) or key in all_keys()


def config_from_dict(values: dict[str, Any]) -> RunConfig:
    """The RunConfig that `config_to_dict` converted.

    Raises:
        ConfigError: a value is missing or has another type; the error names the first.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"contains a {type(values).__name__}; expected a mapping such as `training: …`")
    try:
        return _validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        raise ConfigError(_explain("".join(_place(problem["loc"])), problem)) from None


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        values = parse_yaml(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror}); give the path of a YAML file") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{file}: is not UTF-8 text; give the path of a YAML file") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{file}:{mark.line + 1}" if mark else str(file)
        raise ConfigError(f"{where}: not valid YAML: {getattr(error, 'problem', None) or error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{file}: contains a {type(values).__name__}; expected a mapping such as `training: …`")
    return values


def _parse_override(override: str) -> dict[str, Any]:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"command line: {override!r} is not an override; write key=value, e.g. training.seed=3")
    try:
        value: Any = parse_yaml(text) if _is_utf8(text) else text
    except yaml.YAMLError:
        raise ConfigError(f"command line: the value of {key} is not valid YAML: {text!r}") from None
    first, *parts = key.split(".")
    for part in reversed(parts):
        value = {part: value}
    return {first: value}


def _merge(into: dict[str, Any], values: dict[str, Any], sources: Sources, source: str, prefix: str = "") -> None:
    for key, value in values.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            if not isinstance(into.get(key), dict):
                into[key] = {}
                sources.pop(dotted, None)
            _merge(into[key], value, sources, source, f"{dotted}.")
        else:
            for known in [known for known in sources if known.startswith(f"{dotted}.")]:
                del sources[known]
            into[key] = value
            sources[dotted] = source


def _origin(sources: Sources, keys: Keys) -> str:
    """The prefix of an error with all places where the keys, or keys inside them, were set; empty for defaults."""
    by = [source for key in each_key(keys) for known, source in sources.items() if f"{known}.".startswith(f"{key}.")]
    return f"{' and '.join(dict.fromkeys(by))}: " if by else ""


def _unknown_keys(schema: Any, values: Any, prefix: str = "") -> Iterator[Problem]:
    if not (dataclasses.is_dataclass(schema) and isinstance(values, dict)):
        return
    hints = typing.get_type_hints(schema)
    for key, value in values.items():
        dotted = f"{prefix}{key}"
        if key in hints:
            yield from _unknown_keys(hints[key], value, f"{dotted}.")
            for number, item in _items(hints[key], value):
                known = typing.get_type_hints(_item_schema(hints[key]))
                for name in item.keys() - known.keys():
                    yield dotted, _unknown_of_item(f"{dotted}[{number}]", name, list(known))
        elif isinstance(value, dict) and value and not _is_section(meant_by(dotted)):
            yield from ((leaf, _unknown(leaf)) for leaf, _ in flatten(value, f"{dotted}."))
        else:
            yield dotted, _unknown(dotted)


def _item_schema(hint: Any) -> Any:
    """The dataclass of the items, if a value of this type may be a list of mappings; else None."""
    lists = [option for option in typing.get_args(hint) if typing.get_origin(option) is tuple]
    items = [typing.get_args(option)[0] for option in lists]
    return next((item for item in items if dataclasses.is_dataclass(item)), None)


def _items(hint: Any, value: Any) -> list[tuple[int, dict[str, Any]]]:
    """The mappings in a value that is a list of mappings, each with its number."""
    if _item_schema(hint) is None or not isinstance(value, list):
        return []
    return [(number, item) for number, item in enumerate(value) if isinstance(item, dict)]


def _is_section(key: str | None) -> bool:
    return any(known.startswith(f"{key}.") for known in all_keys())


def _unknown(dotted: str) -> str:
    section = dotted.rpartition(".")[0]
    here = [key.rpartition(".")[2] for key in all_keys() if key.rpartition(".")[0] == section]
    way_out = did_you_mean(dotted) or (f"known here: {', '.join(here)}" if here else "diptych train --keys lists all")
    return f"unknown key {dotted}; {way_out}"


def _unknown_of_item(item: str, name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name.lower(), known, 1)
    way_out = f"did you mean {item}.{near[0]}?" if near else f"known here: {', '.join(known)}"
    return f"unknown key {item}.{name}; {way_out}"


def _without_unknown(schema: Any, values: Any) -> Any:
    if not (dataclasses.is_dataclass(schema) and isinstance(values, dict)):
        return values
    hints = typing.get_type_hints(schema)
    known = {key: value for key, value in values.items() if key in hints}
    for key, value in known.items():
        for number, item in _items(hints[key], value):
            value[number] = _without_unknown(_item_schema(hints[key]), item)
    return {key: _without_unknown(hints[key], value) for key, value in known.items()}


def _check(values: dict[str, Any], checks: Sequence[Check]) -> tuple[RunConfig, list[Problem]]:
    """The configuration and all its problems; the configuration may only be used if there are none."""
    problems = list(_unknown_keys(RunConfig, values))
    mistyped: dict[str, str] = {}
    values = _coerce(RunConfig, _without_unknown(RunConfig, values))
    for key, value in list(flatten(values)):
        if not _is_utf8(value):
            mistyped[key] = f"{key} is {value!r}, with bytes that are not UTF-8; set a value in UTF-8"
            _replace(values, key, STAND_INS.get(key))
    try:
        config = _validate(values)
    except ValidationError as error:
        for problem in sorted(error.errors(), key=lambda problem: not _is_in_mapping(problem, values)):
            key, place = _place(problem["loc"])
            mistyped.setdefault(key, _explain(f"{key}{place}", problem))
        # Replace mistyped values by stand-ins and check the rest, so that all mistakes are reported at once.
        for key in mistyped:
            _replace(values, key, STAND_INS.get(key))
        config = _validate(values)
    problems += mistyped.items()
    config, not_local = _with_local_paths(config)
    problems += [(key, said) for key, said in not_local if key not in mistyped]
    for check in checks:
        bad = [key for keys, _ in problems for key in each_key(keys)]
        problems += [(keys, said) for keys, said in check(config) if not concerns(keys, bad)]
    return config, problems


def _with_local_paths(config: RunConfig) -> tuple[RunConfig, list[Problem]]:
    """Expand `~` in every path; return the new config, and a problem for each URL where a path is expected."""
    values = config_to_dict(config)
    problems: list[Problem] = []

    def path_of(key: str, text: str) -> str:
        if key in MAY_BE_ELSEWHERE and is_elsewhere(text):
            return text
        try:
            path = local_path(text)
        except UserError as error:
            problems.append((key, f"{key} {error}"))
            return text
        return text if path == Path(text) else str(path)

    def paths_of(key: str, value: Any) -> Any:
        if isinstance(value, list):
            return [paths_of(key, one) for one in value]
        return {**value, "shards": paths_of(key, value["shards"])} if isinstance(value, dict) else path_of(key, value)

    for key, value in dict(flatten(values)).items():
        if key in PATHS and value is not None:
            _replace(values, key, paths_of(key, value))
    return _validate(values), problems


def _is_utf8(value: Any) -> bool:
    """Whether a value can be written as UTF-8; False for text with lone surrogates, such as undecodable bytes."""
    try:
        json.dumps(value, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError:
        return False
    return True


@cache
def _schema() -> TypeAdapter[RunConfig]:
    return TypeAdapter(RunConfig)


def _validate(values: dict[str, Any]) -> RunConfig:
    """Validate the values as JSON, where pydantic's strict mode accepts mappings for dataclasses, lists for tuples."""
    return _schema().validate_json(json.dumps(values, default=str), strict=True)


def _replace(values: dict[str, Any], key: str, stand_in: Any) -> None:
    """Set the key to the stand-in; None removes the key, so that its default is used."""
    *parents, name = key.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
    if stand_in is None:
        values.pop(name, None)
    else:
        values[name] = stand_in


def _place(loc: tuple[str | int, ...]) -> tuple[str, str]:
    """The key at a location that pydantic gives, and the place in its value: data.train and [0].weight."""
    for number, part in enumerate(loc):
        if not _is_key(str(part)) and _is_mapping(loc[:number]):  # a name in a mapping, which may have dots
            return ".".join(map(str, loc[:number])), f"[{part!r}]" + "".join(f".{inner}" for inner in loc[number + 1 :])
    parts = [(isinstance(part, int), str(part)) for part in loc if isinstance(part, int) or _is_key(part)]
    first = next((n for n, (is_number, _) in enumerate(parts) if is_number), len(parts))
    is_item = any("Config, ..." in str(part) for part in loc) or not all(is_number for is_number, _ in parts[first:])
    inner = parts[first:] if is_item else []
    place = "".join(f"[{part}]" if is_number else f".{part}" for is_number, part in inner)
    return ".".join(part for _, part in parts[:first]), place


def _is_mapping(loc: tuple[str | int, ...]) -> bool:
    """Whether there is a mapping of freely chosen names at this location of the schema."""
    hint: Any = RunConfig
    for part in loc:
        hint = typing.get_type_hints(hint).get(str(part)) if dataclasses.is_dataclass(hint) else None
    return typing.get_origin(hint) is dict


def _is_in_mapping(problem: Any, values: dict[str, Any]) -> bool:
    """Whether a problem is one of a list of mappings, which is also reported as no text and no list of texts."""
    key, place = _place(problem["loc"])
    return bool(place) and any(isinstance(item, dict) for item in dict(flatten(values)).get(key, ()))


def _is_key(part: str) -> bool:
    """Whether a part of a location is a key; pydantic also adds names of union branches (`tuple[str, ...]`)."""
    return part.isidentifier() and part not in ("str", "int", "float", "bool", "dict", "none")


def _explain(key: str, problem: Any) -> str:
    kind = problem["type"]
    if kind == "missing" and isinstance(problem["loc"][-1], int):
        return f"{key} is {problem['input']!r}; it contains too few numbers"
    if kind in ("missing", "missing_keyword_only_argument", "missing_argument"):
        where = f"`{key}=…`" if "[" not in key else "the mapping there"
        return f"{key} is not set; it has no default, so a file or {where} must give it"
    if kind == "dict_type":
        return f"{key} is {problem['input']!r}; expected a mapping, such as {{NAME: VALUE}}"
    if key == "data.train":
        return f"{key} is {problem['input']!r}; expected shards, a list of them, or a list of {{shards: …, weight: …}}"
    if kind == "dataclass_type":
        return f"{key} is {problem['input']!r}; expected a mapping of its settings"
    return f"{key} is {problem['input']!r}; {problem['msg'].replace('Input should', 'it should')}"


def _coerce(schema: Any, values: Any) -> Any:
    """Convert values that YAML 1.1 reads differently from what people mean, as the schema requires.

    YAML reads `1e-3` as text and `off` as false; and an integer such as 1 may be meant as a float.
    """
    if dataclasses.is_dataclass(schema) and isinstance(values, dict):
        hints = typing.get_type_hints(schema)
        return {key: _coerce(hints[key], value) for key, value in values.items()}
    options = typing.get_args(schema) if typing.get_origin(schema) in UNIONS else (schema,)
    if float in options and not isinstance(values, bool):
        try:
            return float(values) if isinstance(values, (int, str)) else values
        except ValueError:
            return values
    if int in options and isinstance(values, str):
        try:
            return int(float(values)) if float(values).is_integer() else values
        except (ValueError, OverflowError):
            return values
    if values is False and "off" in typing.get_args(schema):
        return "off"
    if isinstance(values, list) and (item := _item_schema(schema)) is not None:
        return [_coerce(item, value) for value in values]
    if isinstance(values, dict):
        for inner in (float, dict[str, float]):
            if dict[str, inner] in options:  # type: ignore[valid-type]
                return {key: _coerce(inner, value) for key, value in values.items()}
    if typing.get_origin(schema) is tuple and isinstance(values, list):
        return [_coerce(typing.get_args(schema)[0], value) for value in values]
    return values
