"""Write values of any type in a table as JSON, column by column."""

from __future__ import annotations

import datetime
import decimal
import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow

_string = json.encoder.encode_basestring_ascii
_ROW_INDENT = "\n    "


def template(names: Sequence[str]) -> str:
    """A %-template that turns the JSON of the values into what `json.dumps(row, indent=4)` gives."""
    lines = (f"{_string(name)}: ".replace("%", "%%") + "%s" for name in names)
    return "{" + _ROW_INDENT + f",{_ROW_INDENT}".join(lines) + "\n}"


def json_texts(column: pyarrow.ChunkedArray) -> list[str]:
    """The JSON of each value, indented as within a row."""
    import pyarrow

    kind = column.type
    values = as_python(column)
    if pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind):
        return ["null" if value is None else _string(value) for value in values]
    if pyarrow.types.is_integer(kind):
        return ["null" if value is None else str(value) for value in values]
    if pyarrow.types.is_floating(kind):
        return ["null" if value is None or not math.isfinite(value) else repr(float(value)) for value in values]
    return [json.dumps(plain(value), indent=4).replace("\n", _ROW_INDENT) for value in values]


def as_python(column: pyarrow.ChunkedArray) -> list[Any]:
    """The values as Python objects; values that Python cannot hold (nanoseconds, years after 9999) as text."""
    values: list[Any]
    try:
        values = column.to_pylist()
    except (ValueError, OverflowError, ImportError):
        import pyarrow

        values = column.cast(pyarrow.string()).to_pylist()
    return values


def plain(value: Any) -> Any:
    """Convert the value to what JSON can contain: no NaN, bytes in hexadecimal, dates in ISO 8601, decimals as text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, decimal.Decimal):
        return str(value)
    if isinstance(value, dict):
        return {str(name): plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return str(value)
