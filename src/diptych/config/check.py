"""Check plain values against the schema and every rule, and find all mistakes at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from diptych.config.problem import Problem, concerns, each_key
from diptych.config.rules import impossible
from diptych.config.schema import RunConfig
from diptych.config.typed import MistypedError, coerce, typed
from diptych.config.unknown_keys import without_unknown_keys
from diptych.config.values import config_to_dict, flatten, is_utf8
from diptych.errors import UserError
from diptych.files import local_path
from diptych.remote_files import is_elsewhere

Check = Callable[[RunConfig], Iterator[Problem]]

STAND_INS: dict[str, Any] = {
    "run_dir": "",
    "data": {"train": ""},
    "data.train": "",
    "training": {"total_samples": 2**62, "global_batch_size": 2},
    "training.total_samples": 2**62,
    "training.global_batch_size": 2,
}
"""Values in the place of mistyped ones that have no default, so that the rest can be checked."""

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


def check(values: dict[str, Any], checks: Sequence[Check]) -> tuple[RunConfig, list[Problem]]:
    """The configuration and all its problems; the configuration may only be used if there are none."""
    problems: list[Problem] = []
    values = coerce(RunConfig, without_unknown_keys(RunConfig, values, problems))
    mistyped: dict[str, str] = {}
    for key, value in list(flatten(values)):
        if not is_utf8(value):
            mistyped[key] = f"{key} is {value!r}, with bytes that are not UTF-8; set a value in UTF-8"
            _set(values, key, STAND_INS.get(key))
    try:
        config = typed(values)
    except MistypedError as error:
        mistyped = {**error.messages, **mistyped}
        for key in mistyped:
            _set(values, key, STAND_INS.get(key))
        config = typed(values)
    problems += mistyped.items()
    config, not_local = _with_local_paths(config)
    problems += [(key, said) for key, said in not_local if not concerns(key, tuple(mistyped))]
    for further in (impossible, *checks):
        bad = [key for keys, _ in problems for key in each_key(keys)]
        problems += [(keys, said) for keys, said in further(config) if not concerns(keys, bad)]
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
            _set(values, key, paths_of(key, value))
    return typed(values), problems


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    """Set the key to the value; None removes the key, so that its default is used."""
    *parents, name = key.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
    if value is None:
        values.pop(name, None)
    else:
        values[name] = value
