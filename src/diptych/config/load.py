"""Load YAML files and key=value overrides into a RunConfig, or raise one ConfigError that names every mistake.

Files are merged left to right, then the overrides; an empty mapping removes what was set before. The origin of
each value is recorded, so that errors and `diptych train --dry-run` can show it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from diptych.config.check import Check, check
from diptych.config.keys import all_keys
from diptych.config.problem import Keys, each_key
from diptych.config.schema import SIGLIP_START, RunConfig
from diptych.config.typed import MistypedError, typed
from diptych.config.values import is_utf8
from diptych.errors import UserError
from diptych.files import local_path
from diptych.yaml_documents import parse_yaml

Sources = dict[str, str]
"""Dotted key → where it was set: a file name, `command line`, `initial weights` or `loss.name sigmoid`."""


class ConfigError(UserError):
    """A configuration that cannot be run; the message has one line per mistake."""


@dataclass(frozen=True)
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

    config, problems = check(merged, checks)
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
        return typed(values)
    except MistypedError as error:
        raise ConfigError(next(iter(error.messages.values()))) from None


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
        value: Any = parse_yaml(text) if is_utf8(text) else text
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
