"""Find the keys that the schema does not have, and guess what they mean."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Iterator
from typing import Any

from diptych.config.keys import all_keys, did_you_mean, item_schema, meant_by
from diptych.config.problem import Problem
from diptych.config.values import flatten


def without_unknown_keys(schema: Any, values: Any, problems: list[Problem], prefix: str = "") -> Any:
    """The values whose keys the schema has; a problem is added for each other key."""
    if not (dataclasses.is_dataclass(schema) and isinstance(values, dict)):
        return values
    hints = typing.get_type_hints(schema)
    known = {}
    for key, value in values.items():
        dotted = f"{prefix}{key}"
        if key not in hints:
            problems += ((leaf, _unknown(leaf)) for leaf in _leaves(dotted, value))
        elif isinstance(value, list) and (item := item_schema(hints[key])) is not None:
            known[key] = [_known_item(item, each, problems, dotted, number) for number, each in enumerate(value)]
        else:
            known[key] = without_unknown_keys(hints[key], value, problems, f"{dotted}.")
    return known


def _known_item(schema: Any, item: Any, problems: list[Problem], key: str, number: int) -> Any:
    if not isinstance(item, dict):
        return item
    names = list(typing.get_type_hints(schema))
    problems += ((key, _unknown_of_item(f"{key}[{number}]", name, names)) for name in item if name not in names)
    return {name: value for name, value in item.items() if name in names}


def _leaves(dotted: str, value: Any) -> Iterator[str]:
    """The unknown key; for a mapping that resembles no section of the schema, the keys inside it."""
    if isinstance(value, dict) and value and not _is_section(meant_by(dotted)):
        yield from (leaf for leaf, _ in flatten(value, f"{dotted}."))
    else:
        yield dotted


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
