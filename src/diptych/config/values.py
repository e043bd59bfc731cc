"""Convert a configuration to plain values, for YAML, for records, and for comparing two of them."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from typing import Any

import yaml

from diptych.config.schema import RunConfig


def config_to_dict(config: RunConfig) -> dict[str, Any]:
    """Plain values, as YAML holds them."""
    values: dict[str, Any] = _lists(dataclasses.asdict(config))
    return values


def dump_config(config: RunConfig) -> str:
    return yaml.safe_dump(config_to_dict(config), sort_keys=False, allow_unicode=True)


def flatten(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every leaf; an empty mapping counts as a leaf."""
    for key, value in values.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{dotted}.")
        else:
            yield dotted, value


def is_utf8(value: Any) -> bool:
    """Whether a value can be written as UTF-8; False for text with lone surrogates, such as undecodable bytes."""
    try:
        json.dumps(value, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError:
        return False
    return True


def differing_keys(one: RunConfig, other: RunConfig) -> list[tuple[str, Any, Any]]:
    """(key, value in one, value in other) for each key in which two configurations differ."""
    left, right = dict(flatten(config_to_dict(one))), dict(flatten(config_to_dict(other)))
    keys = list(dict.fromkeys([*left, *right]))
    return [(key, left.get(key), right.get(key)) for key in keys if left.get(key) != right.get(key)]


def seconds_of(duration: str) -> float:
    """The seconds of a duration such as `3h50m`, of days, hours, minutes and seconds.

    Raises:
        ValueError: it is none.
    """
    parts = re.fullmatch(r"(?=.)(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", duration, re.ASCII)
    if parts is None:
        raise ValueError(f"{duration!r} is no duration; expected one such as 3h50m, 90m or 2d")
    return sum(int(part or 0) * size for part, size in zip(parts.groups(), (86400, 3600, 60, 1), strict=True))


def _lists(values: Any) -> Any:
    if isinstance(values, dict):
        return {key: _lists(value) for key, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [_lists(value) for value in values]
    return values
