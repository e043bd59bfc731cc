"""Read JSON that people write: a repeated key is an error, where Python's parser would keep the last one."""

from __future__ import annotations

import json
import json.decoder
import json.scanner
from collections.abc import Callable
from typing import Any


def parse_json(text: str, parse_constant: Callable[[str], Any] | None = None) -> Any:
    """The value of a JSON document.

    parse_constant: converts `NaN`, `Infinity` and `-Infinity`; by default they become floats.

    Raises:
        json.JSONDecodeError: it is not JSON, repeats a key, or has too many digits or levels. The error gives the line
            and the key if they are known.
    """
    try:
        return json.loads(text, parse_constant=parse_constant, object_pairs_hook=_without_repeats)
    except _RepeatedKeyError:
        raise _located(text) from None
    except json.JSONDecodeError:
        raise
    except (ValueError, RecursionError) as error:
        raise json.JSONDecodeError(why_not_read(error), text, 0) from error


def why_not_read(error: Exception) -> str:
    """A parser's ValueError or RecursionError in words for the author of the document."""
    return "too many levels of nesting" if isinstance(error, RecursionError) else str(error)


class _RepeatedKeyError(Exception):
    """A key is repeated somewhere in the document."""


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise _RepeatedKeyError
    return fields


def _located(text: str) -> json.JSONDecodeError:
    """The error for a repeated key, with its position.

    Reads the document again with Python's slower scanner, which knows the position of each value.
    """

    def read_object(start: tuple[str, int], strict: bool, scan_once: Any, *others: Any) -> Any:
        places: list[int] = []

        def scan(string: str, place: int) -> Any:
            places.append(place)
            return scan_once(string, place)

        pairs, end = json.decoder.JSONObject(start, strict, scan, None, lambda pairs: pairs)  # type: ignore[attr-defined]
        seen: set[str] = set()
        for (key, _), place in zip(pairs, places, strict=True):
            if key in seen:
                raise json.JSONDecodeError(f"the key {key!r} appears twice; keep one of the two", text, place)
            seen.add(key)
        return dict(pairs), end

    decoder = json.JSONDecoder()
    decoder.parse_object = read_object  # type: ignore[attr-defined]
    decoder.scan_once = json.scanner.py_make_scanner(decoder)  # type: ignore[attr-defined]
    try:
        decoder.decode(text)
    except json.JSONDecodeError as error:
        return error
    raise AssertionError("no key is repeated")
