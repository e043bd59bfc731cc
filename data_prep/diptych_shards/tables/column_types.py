"""Choose one type for each column of a table, and convert every value to it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow
import pyarrow.compute as compute
import pyarrow.types as kinds

from diptych_shards.tables.json_text import as_python

_NO_VALUE = frozenset(("", "NA", "N/A", "n/a", "NaN", "nan", "NULL", "null", "None"))
_TRUTHS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_IS_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]{0,17})").fullmatch
_IS_NUMBER = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|-?inf").fullmatch
_SURROGATE = re.compile("[\ud800-\udfff]")
_NO_BYTE = re.compile("[\ud800-\udc7f\udd00-\udfff]")
BOXES = pyarrow.list_(pyarrow.list_(pyarrow.float64()))

OnMisfit = Callable[[], None]


def is_text(kind: pyarrow.DataType) -> bool:
    return bool(kinds.is_string(kind) or kinds.is_large_string(kind))


def stored_type(kind: pyarrow.DataType) -> pyarrow.DataType:
    """The type that a column is stored in with the pictures; every reader of parquet knows it."""
    if kinds.is_dictionary(kind):
        return stored_type(kind.value_type)
    if isinstance(kind, pyarrow.BaseExtensionType):
        return stored_type(kind.storage_type)
    if kinds.is_null(kind) or getattr(kinds, "is_string_view", kinds.is_null)(kind):
        return pyarrow.string()
    if getattr(kinds, "is_binary_view", kinds.is_null)(kind):
        return pyarrow.binary()
    return kind


def type_of_texts(values: Sequence[str]) -> pyarrow.DataType:
    """The type of a column of a CSV file. A number that would be written differently (007) is text."""
    known = [value for value in values if value not in _NO_VALUE]
    if not known:
        return pyarrow.string()
    if all(map(_IS_INTEGER, known)):
        return pyarrow.int64()
    if all(map(_IS_NUMBER, known)):
        return pyarrow.string() if any(map(_has_leading_zero, known)) else pyarrow.float64()
    if all(value in _TRUTHS for value in known):
        return pyarrow.bool_()
    return pyarrow.string()


def array_of_texts(values: Sequence[str], kind: pyarrow.DataType, on_misfit: OnMisfit) -> pyarrow.Array:
    """Convert texts to values of the type; a text that does not fit becomes null."""
    if is_text(kind):
        return strings(values)
    read = {pyarrow.int64(): _integer, pyarrow.float64(): _number, pyarrow.bool_(): _TRUTHS.__getitem__}[kind]
    fitting: list[Any] = []
    for value in values:
        try:
            fitting.append(None if value in _NO_VALUE else read(value.strip()))
        except (ValueError, KeyError):
            fitting.append(None)
            on_misfit()
    return pyarrow.array(fitting, kind)


def type_of_values(values: Sequence[Any]) -> pyarrow.DataType:
    """The type of a column of a JSON file; text if its values are of several kinds, or objects."""
    known = [value for value in values if value is not None]
    if known and all(isinstance(value, int | float) and not isinstance(value, bool) for value in known):
        whole = all(isinstance(value, int) and -(2**63) <= value < 2**63 for value in known)
        return pyarrow.int64() if whole else pyarrow.float64()
    try:
        kind = pyarrow.array(known[:]).type
    except (pyarrow.ArrowException, UnicodeError, OverflowError):
        return pyarrow.string()
    return pyarrow.string() if _holds_objects(kind) or kinds.is_null(kind) else kind


def array_of_values(values: Sequence[Any], kind: pyarrow.DataType, on_misfit: OnMisfit) -> pyarrow.Array:
    """Convert JSON values to values of the type; in a text column, other values are written as JSON."""
    if is_text(kind):
        return strings([v if v is None or isinstance(v, str) else json.dumps(v, ensure_ascii=False) for v in values])
    try:
        return pyarrow.array(values, kind)
    except (pyarrow.ArrowException, UnicodeError, OverflowError, TypeError, ValueError):
        return pyarrow.concat_arrays([_one(value, kind, on_misfit) for value in values])


def strings(values: Sequence[str | None]) -> pyarrow.Array:
    """An array of texts, or of bytes if some contain bytes that are not UTF-8 (lone surrogates)."""
    try:
        return pyarrow.array(values, pyarrow.string())
    except UnicodeEncodeError:
        return pyarrow.array([None if value is None else _as_stored(value) for value in values], pyarrow.binary())


def as_text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def as_url(data: bytes) -> str:
    """Decode a URL; bytes that are not UTF-8 become %XX, as in a browser's request."""
    return _SURROGATE.sub(lambda found: f"%{ord(found.group()) - 0xDC00:02X}", data.decode("utf-8", "surrogateescape"))


def texts(column: pyarrow.ChunkedArray, decode: Callable[[bytes], str]) -> pyarrow.ChunkedArray:
    """Cast the column to text. decode: called for values that are not UTF-8."""
    if is_text(column.type):
        try:
            column.validate(full=True)
            return column
        except pyarrow.ArrowInvalid:
            column = column.cast(_as_bytes(column.type))
    if not _is_bytes(column.type):
        return column.cast(pyarrow.string())
    decoded = [None if value is None else decode(value) for value in column.to_pylist()]
    return pyarrow.chunked_array([pyarrow.array(decoded, pyarrow.string())])


def hashes(column: pyarrow.ChunkedArray, kind: str) -> pyarrow.ChunkedArray:
    """Convert digests to lower-case hexadecimal; null where there is none."""
    size = hashlib.new(kind).digest_size
    column = texts(column, lambda value: value.hex() if len(value) == size else as_text(value))
    column = compute.utf8_lower(compute.utf8_trim_whitespace(column))
    return compute.if_else(compute.equal(column, ""), pyarrow.scalar(None, column.type), column)


def boxes(column: pyarrow.ChunkedArray, on_misfit: OnMisfit) -> pyarrow.ChunkedArray:
    """Convert to lists of boxes, also from JSON; a value that cannot be read becomes one box over the whole picture.

    A user who names a column of boxes wants them hidden: a mistake in it must not show a face.
    """
    if not (is_text(column.type) or _is_bytes(column.type)):
        return column.cast(BOXES)
    found: list[Any] = []
    for text in texts(column, as_text).to_pylist():
        value: Any = None
        try:
            if text and text.strip() not in _NO_VALUE:
                value = [list(map(float, box)) for box in json.loads(text) or ()]
            found.append(value)
        except (ValueError, TypeError, RecursionError):
            found.append([[0.0, 0.0, 1.0, 1.0]])
            on_misfit()
    return pyarrow.chunked_array([pyarrow.array(found, BOXES)])


def is_boxes(kind: pyarrow.DataType) -> bool:
    """Whether the type is a list of lists of numbers."""

    def is_list(kind: pyarrow.DataType) -> bool:
        return bool(kinds.is_list(kind) or kinds.is_large_list(kind) or kinds.is_fixed_size_list(kind))

    if not (is_list(kind) and is_list(kind.value_type)):
        return is_list(kind) and bool(kinds.is_null(kind.value_type))
    number = kind.value_type.value_type
    return bool(kinds.is_floating(number) or kinds.is_integer(number) or kinds.is_null(number))


def plain_column(column: pyarrow.ChunkedArray) -> pyarrow.ChunkedArray:
    """Cast the column to its `stored_type`."""
    if isinstance(column.type, pyarrow.BaseExtensionType):
        chunks = [chunk.storage for chunk in column.chunks]
        return plain_column(pyarrow.chunked_array(chunks, column.type.storage_type))
    kind = stored_type(column.type)
    return column if column.type == kind else column.cast(kind)


def as_values(column: pyarrow.ChunkedArray) -> list[Any]:
    """The values as Python objects; bytes that are not UTF-8 become lone surrogates in text."""
    column = plain_column(column)
    if _is_valid_text(column):
        return as_python(column)
    return _decoded_column(column, "surrogateescape")


def with_valid_text(column: pyarrow.ChunkedArray) -> pyarrow.ChunkedArray:
    """Replace bytes that are not UTF-8 wherever the column contains text."""
    if _is_valid_text(column):
        return column
    return pyarrow.chunked_array([pyarrow.array(_decoded_column(column, "replace"), column.type)])


def _one(value: Any, kind: pyarrow.DataType, on_misfit: OnMisfit) -> pyarrow.Array:
    try:
        return pyarrow.array([value], kind)
    except (pyarrow.ArrowException, UnicodeError, OverflowError, TypeError, ValueError):
        on_misfit()
        return pyarrow.nulls(1, kind)


def _integer(text: str) -> int:
    value = int(text)
    if not -(2**63) <= value < 2**63:
        raise ValueError(text)
    return value


def _number(text: str) -> float:
    if not _IS_NUMBER(text):
        raise ValueError(text)
    return float(text)


def _has_leading_zero(text: str) -> bool:
    digits = text.lstrip("+-")
    return len(digits) > 1 and digits[0] == "0" and digits[1].isdigit()


def _as_stored(text: str) -> bytes:
    """The bytes that were read; surrogates from JSON escapes are joined, or replaced."""
    text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
    return _NO_BYTE.sub("\N{REPLACEMENT CHARACTER}", text).encode("utf-8", "surrogateescape")


def _is_bytes(kind: pyarrow.DataType) -> bool:
    return bool(kinds.is_binary(kind) or kinds.is_large_binary(kind) or kinds.is_fixed_size_binary(kind))


def _children(kind: pyarrow.DataType) -> list[pyarrow.DataType]:
    return [kind.field(number).type for number in range(kind.num_fields)]


def _holds_text(kind: pyarrow.DataType) -> bool:
    return is_text(kind) or any(map(_holds_text, _children(kind)))


def _holds_objects(kind: pyarrow.DataType) -> bool:
    return kinds.is_struct(kind) or any(map(_holds_objects, _children(kind)))


def _as_bytes(kind: pyarrow.DataType) -> pyarrow.DataType:
    if kinds.is_string(kind):
        return pyarrow.binary()
    if kinds.is_large_string(kind):
        return pyarrow.large_binary()
    if kinds.is_large_list(kind):
        return pyarrow.large_list(_as_bytes(kind.value_type))
    if kinds.is_list(kind):
        return pyarrow.list_(_as_bytes(kind.value_type))
    if kinds.is_struct(kind):
        return pyarrow.struct([(kind.field(i).name, _as_bytes(kind.field(i).type)) for i in range(kind.num_fields)])
    return kind


def _is_valid_text(column: pyarrow.ChunkedArray) -> bool:
    if not _holds_text(column.type):
        return True
    try:
        column.validate(full=True)
        return True
    except pyarrow.ArrowInvalid:
        return False


def _decoded_column(column: pyarrow.ChunkedArray, errors: str) -> list[Any]:
    raw = column.cast(_as_bytes(column.type)).to_pylist()
    return [_decoded(value, column.type, errors) for value in raw]


def _decoded(value: Any, kind: pyarrow.DataType, errors: str) -> Any:
    if isinstance(value, bytes) and is_text(kind):
        return value.decode("utf-8", errors)
    if isinstance(value, list) and (kinds.is_list(kind) or kinds.is_large_list(kind)):
        return [_decoded(part, kind.value_type, errors) for part in value]
    if isinstance(value, dict):
        return {name: _decoded(part, kind.field(name).type, errors) for name, part in value.items()}
    return value
