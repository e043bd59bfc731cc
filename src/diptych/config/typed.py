"""Convert plain values to the types of the schema, and explain which of them do not fit."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Mapping
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError

from diptych.config.keys import UNIONS, item_schema
from diptych.config.schema import RunConfig
from diptych.config.values import flatten


class MistypedError(ValueError):
    """Values do not have the types of the schema.

    messages: key → what is wrong with its value.
    """

    def __init__(self, messages: Mapping[str, str]):
        super().__init__("\n".join(messages.values()))
        self.messages = messages


def typed(values: dict[str, Any]) -> RunConfig:
    """The configuration with these values.

    They are passed as JSON, from which pydantic's strict mode takes mappings for dataclasses and lists for tuples.

    Raises:
        MistypedError: a value is missing or has another type.
    """
    try:
        return _schema().validate_json(json.dumps(values, default=str), strict=True)
    except ValidationError as error:
        messages: dict[str, str] = {}
        for problem in sorted(error.errors(), key=lambda problem: not _is_in_mapping(problem, values)):
            key, place = _place(problem["loc"])
            messages.setdefault(key, _explain(f"{key}{place}", problem))
        raise MistypedError(messages) from None


def coerce(schema: Any, values: Any) -> Any:
    """Convert values that YAML 1.1 reads differently from what people mean, as the schema requires.

    YAML reads `1e-3` as text and `off` as false; and an integer such as 1 may be meant as a float.
    """
    if dataclasses.is_dataclass(schema) and isinstance(values, dict):
        hints = typing.get_type_hints(schema)
        return {key: coerce(hints[key], value) for key, value in values.items()}
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
    if isinstance(values, list) and (item := item_schema(schema)) is not None:
        return [coerce(item, value) for value in values]
    if isinstance(values, dict):
        for inner in (float, dict[str, float]):
            if dict[str, inner] in options:  # type: ignore[valid-type]
                return {key: coerce(inner, value) for key, value in values.items()}
    if typing.get_origin(schema) is tuple and isinstance(values, list):
        return [coerce(typing.get_args(schema)[0], value) for value in values]
    return values


@cache
def _schema() -> TypeAdapter[RunConfig]:
    return TypeAdapter(RunConfig)


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
