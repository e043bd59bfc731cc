"""What an expression says of many rows at once, computed by Arrow.

Numbers, texts and truth values do not mix; what is not known (null) makes what is computed from it unknown, as in SQL.
Only the operators and functions in the tables below exist.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow
import pyarrow.compute as compute

from diptych_shards.metadata import no_column, no_text
from diptych_shards.select.errors import SelectError
from diptych_shards.select.expression import Call, Column, Literal, Node

NUMBER, TEXT, TRUTH, OTHER, UNKNOWN = "a number", "a text", "true or false", "something else", "unknown"
"""Kinds of values; a column that is null in all rows is of the last."""

_TYPES = {NUMBER: pyarrow.float64(), TEXT: pyarrow.string(), TRUTH: pyarrow.bool_()}
_NUMBER_IN_TEXT = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"

Columns = Mapping[str, pyarrow.Array]


def truths(node: Node, columns: Columns, num_rows: int) -> pyarrow.BooleanArray:
    """Of each row: true, false, or null for unknown.

    Raises:
        SelectError: there is no such column, or something is applied to values of the wrong kind.
    """
    return _of_rows(node, columns, TRUTH, num_rows)


def numbers(node: Node, columns: Columns, num_rows: int) -> pyarrow.DoubleArray:
    """Of each row: f64, or null for unknown.

    Raises:
        SelectError: as above.
    """
    return _of_rows(node, columns, NUMBER, num_rows)


def check(node: Node) -> None:
    """Raises:
    SelectError: it calls a function that does not exist, or with the wrong operands.
    """
    if not isinstance(node, Call):
        return
    for operand in node.operands:
        check(operand)
    if node.name in _OPERATORS:
        return
    if node.name not in FUNCTIONS:
        near = difflib.get_close_matches(node.name, FUNCTIONS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(FUNCTIONS)}, coalesce"
        raise SelectError(f"no function {node.name!r}; {hint}")
    function = FUNCTIONS[node.name]
    num_given, num_wanted = len(node.operands), len(function.takes)
    if num_given != num_wanted and not (function.repeats and num_given > num_wanted):
        more = " or more" if function.repeats else ""
        raise SelectError(f"{node.name} takes {num_wanted}{more} operands, not {num_given}")
    if function.pattern is not None:
        _checked_pattern(node, function.pattern)


@dataclass(frozen=True)
class _Value:
    kind: str
    data: Any
    """An array, or a scalar that holds for all rows."""


@dataclass(frozen=True)
class _Function:
    takes: Sequence[str]
    gives: str
    of: Callable[..., Any]
    repeats: bool = False
    """Whether the last operand may stand there several times."""
    pattern: Callable[[str], Any] | None = None
    """Where the second operand is not computed, but written down: something that fails if it is no good."""


def _of_rows(node: Node, columns: Columns, kind: str, num_rows: int) -> Any:
    data = _wanted(_evaluate(node, columns), kind, "the expression").cast(_TYPES[kind])
    if isinstance(data, pyarrow.Scalar):
        return pyarrow.repeat(data, num_rows)
    return data.combine_chunks() if isinstance(data, pyarrow.ChunkedArray) else data


def _evaluate(node: Node, columns: Columns) -> _Value:
    if isinstance(node, Literal):
        return _of(pyarrow.scalar(node.value))
    if isinstance(node, Column):
        if node.name not in columns:
            raise SelectError(no_column(node.name, columns))
        return _of(columns[node.name])
    values = [_evaluate(operand, columns) for operand in node.operands]
    if node.name in _OPERATORS:
        return _OPERATORS[node.name](node.name, values)
    function = FUNCTIONS[node.name]
    kinds = [*function.takes, *[function.takes[-1]] * (len(values) - len(function.takes))]
    data = [
        _wanted(value, kind, f"operand {place} of {node.name}")
        for place, (value, kind) in enumerate(zip(values, kinds, strict=True), 1)
    ]
    if function.pattern is not None:
        data[1] = data[1].as_py()
    return _Value(function.gives, function.of(*data))


def _of(data: Any) -> _Value:
    """A column or a literal, in the few types that are computed with."""
    types, kind = pyarrow.types, data.type
    if types.is_dictionary(kind):
        data, kind = data.cast(kind.value_type), kind.value_type
    if types.is_null(kind):
        return _Value(UNKNOWN, data)
    if types.is_boolean(kind):
        return _Value(TRUTH, data)
    if types.is_signed_integer(kind) or types.is_uint8(kind) or types.is_uint16(kind) or types.is_uint32(kind):
        return _Value(NUMBER, data.cast(pyarrow.int64()))
    if types.is_uint64(kind) or types.is_floating(kind) or types.is_decimal(kind):
        return _Value(NUMBER, data.cast(pyarrow.float64()))
    is_text = kind in (pyarrow.string(), pyarrow.large_string()) or str(kind) == "string_view"
    if is_text or types.is_temporal(kind):
        return _Value(TEXT, data.cast(pyarrow.string()))
    return _Value(OTHER, data)


def _wanted(value: _Value, kind: str, what: str) -> Any:
    if value.kind == UNKNOWN:
        return value.data.cast(_TYPES[kind])
    if value.kind != kind:
        way_out = "; number(...) reads one from a text" if (value.kind, kind) == (TEXT, NUMBER) else ""
        raise SelectError(f"{what} is {value.kind}, {kind} was expected{way_out}")
    return value.data


def _of_one_kind(name: str, values: Sequence[_Value]) -> tuple[str, list[Any]]:
    kinds = list(dict.fromkeys(value.kind for value in values if value.kind != UNKNOWN)) or [NUMBER]
    kind = kinds[0]
    if OTHER in kinds:
        raise SelectError(f"{name} is for numbers, texts and truth values, not for lists and the like")
    if len(kinds) > 1:
        way_out = "; number(...) reads one from a text" if {NUMBER, TEXT} <= set(kinds) else ""
        raise SelectError(f"{name} cannot compare {kinds[0]} with {kinds[1]}{way_out}")
    return kind, [_wanted(value, kind, f"operand {place} of {name}") for place, value in enumerate(values, 1)]


def _compare(name: str, values: Sequence[_Value]) -> _Value:
    _, data = _of_one_kind(name, values)
    return _Value(TRUTH, _COMPARISONS[name](*data))


def _is_in(name: str, values: Sequence[_Value]) -> _Value:
    _, data = _of_one_kind(name, values)
    return _Value(TRUTH, functools.reduce(compute.or_kleene, (compute.equal(data[0], each) for each in data[1:])))


def _is_null(name: str, values: Sequence[_Value]) -> _Value:
    return _Value(TRUTH, compute.is_null(values[0].data))


def _logic(name: str, values: Sequence[_Value]) -> _Value:
    data = [_wanted(value, TRUTH, f"operand {place} of {name}") for place, value in enumerate(values, 1)]
    if name == "not":
        return _Value(TRUTH, compute.invert(data[0]))
    return _Value(TRUTH, functools.reduce(compute.and_kleene if name == "and" else compute.or_kleene, data))


def _calculate(name: str, values: Sequence[_Value]) -> _Value:
    # In floating point nothing overflows, and a division by zero is a value.
    data = [
        _wanted(v, NUMBER, f"operand {place} of {name}").cast(pyarrow.float64()) for place, v in enumerate(values, 1)
    ]
    return _Value(NUMBER, _CALCULATIONS[name](*data))


def _coalesce(name: str, values: Sequence[_Value]) -> _Value:
    kind, data = _of_one_kind(name, values)
    return _Value(kind, compute.coalesce(*(each.cast(_TYPES[kind]) for each in data)))


_COMPARISONS: dict[str, Callable[..., Any]] = {
    "=": compute.equal,
    "<>": compute.not_equal,
    "<": compute.less,
    "<=": compute.less_equal,
    ">": compute.greater,
    ">=": compute.greater_equal,
}
_CALCULATIONS: dict[str, Callable[..., Any]] = {
    "+": compute.add,
    "-": compute.subtract,
    "*": compute.multiply,
    "/": compute.divide,
}
_OPERATORS: dict[str, Callable[[str, Sequence[_Value]], _Value]] = {
    **dict.fromkeys(_COMPARISONS, _compare),
    **dict.fromkeys(_CALCULATIONS, _calculate),
    **dict.fromkeys(("and", "or", "not"), _logic),
    "in": _is_in,
    "is null": _is_null,
    "coalesce": _coalesce,
}


def _read_number(texts: Any) -> Any:
    trimmed = compute.utf8_trim_whitespace(texts)
    is_number = compute.match_substring_regex(trimmed, _NUMBER_IN_TEXT)
    return compute.if_else(is_number, trimmed, pyarrow.scalar(None, pyarrow.string())).cast(pyarrow.float64())


def _element_wise(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *data: function(*(each.cast(pyarrow.float64()) for each in data), skip_nulls=False)


def _on_text(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda texts, pattern: function(texts, pattern)


def _compiles(pattern: str) -> None:
    compute.match_substring_regex("", pattern)


FUNCTIONS: dict[str, _Function] = {
    "length": _Function((TEXT,), NUMBER, compute.utf8_length),
    "words": _Function((TEXT,), NUMBER, lambda texts: compute.count_substring_regex(texts, r"\S+")),
    "lower": _Function((TEXT,), TEXT, compute.utf8_lower),
    "upper": _Function((TEXT,), TEXT, compute.utf8_upper),
    "contains": _Function((TEXT, TEXT), TRUTH, _on_text(compute.match_substring), pattern=str),
    "starts_with": _Function((TEXT, TEXT), TRUTH, _on_text(compute.starts_with), pattern=str),
    "ends_with": _Function((TEXT, TEXT), TRUTH, _on_text(compute.ends_with), pattern=str),
    "like": _Function((TEXT, TEXT), TRUTH, _on_text(compute.match_like), pattern=str),
    "matches": _Function((TEXT, TEXT), TRUTH, _on_text(compute.match_substring_regex), pattern=_compiles),
    "number": _Function((TEXT,), NUMBER, _read_number),
    "abs": _Function((NUMBER,), NUMBER, lambda each: compute.abs(each.cast(pyarrow.float64()))),
    "round": _Function((NUMBER,), NUMBER, lambda each: compute.round(each, round_mode="half_towards_infinity")),
    "floor": _Function((NUMBER,), NUMBER, compute.floor),
    "least": _Function((NUMBER, NUMBER), NUMBER, _element_wise(compute.min_element_wise), repeats=True),
    "greatest": _Function((NUMBER, NUMBER), NUMBER, _element_wise(compute.max_element_wise), repeats=True),
}
"""All there are, beside coalesce. Patterns of `matches` are RE2's: their time is linear in the text."""


def _checked_pattern(call: Call, attempt: Callable[[str], Any]) -> None:
    pattern = call.operands[1]
    if not isinstance(pattern, Literal) or not isinstance(pattern.value, str):
        what = f": {no_text(pattern.name)}" if isinstance(pattern, Column) else ""
        raise SelectError(f"operand 2 of {call.name} must be written down, in single quotes{what}")
    try:
        attempt(pattern.value)
    except pyarrow.ArrowInvalid as error:
        raise SelectError(f"{pattern.value[:80]!r}: {str(error).splitlines()[0]}") from error
