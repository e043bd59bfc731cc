"""SQL about one sample, such as `width >= 256 and length(caption) > 5`, answered by DuckDB for many samples at once.

An expression reads no file, no setting and no table but the samples, and always gives the same answer: DuckDB parses it
first, and what is neither an operator nor one of FUNCTIONS is refused.
"""

from __future__ import annotations

import difflib
import functools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow
import pyarrow.compute as compute

from diptych.errors import UserError
from diptych.terminal import printable

MOST_CHARACTERS = 10_000

_LIMITS: dict[str, str | bool | int | float | list[str]] = {
    "threads": 1,
    "memory_limit": "1GB",
    "temp_directory": "",
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "python_enable_replacements": False,
}
_MACROS = {
    "words(text)": r"len(regexp_extract_all(text, '\S+'))",
    "matches(text, pattern)": "regexp_matches(text, pattern)",
    "number(text)": "nullif(try_cast(trim(text) as double), 'nan'::double)",
}
"""Functions of our own."""
FUNCTIONS = (
    "abs ceil exp floor greatest if least ln log10 log2 mod nullif number pow round sign sqrt "
    "contains ends_with left length lower ltrim matches md5 position regexp_extract reverse right rtrim split_part "
    "starts_with strip_accents strlen substring trim upper words "
    "day hour minute month second year date_part date_diff strptime list_contains json_extract_string"
).split()
"""All functions that an expression may use. None reads anything else, depends on the day, or returns much more than it
is given: DuckDB's limit of memory does not hold for what `repeat` can make of a short text."""
_OPERATORS = frozenset(
    "+ - * / // % ^ ** || ~~ !~~ ~~* !~~* like_escape not_like_escape ilike_escape not_ilike_escape ->> "
    "list_value list_extract regexp_full_match substr len ceiling power ucase lcase".split()
)
"""Functions that operators become in DuckDB, and other names of FUNCTIONS."""
_KINDS = frozenset(
    "BETWEEN CASE CAST COLLATE COLUMN_REF COMPARISON CONJUNCTION CONSTANT FUNCTION OPERATOR TYPE".split()
)
"""Parts of an expression that are about one row; subqueries, windows, lambdas, parameters and `*` are not."""
_BEFORE, _AFTER = "select (", "\n)"
_WORDS = re.compile(r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|--[^\n]*|/\*.*?\*/|\w+|[^\w\s]""", re.DOTALL)

Columns = Mapping[str, pyarrow.Array]


@dataclass(frozen=True)
class Expression:
    """A parsed expression."""

    source: str
    columns: tuple[str, ...]
    """The names of the columns in it, each once."""
    is_and: bool = False
    is_or: bool = False
    """Whether its outermost operator is `and`, or `or`."""

    def truths(self, columns: Columns, num_rows: int) -> pyarrow.BooleanArray:
        """Whether the expression is true of each row; null if that is unknown.

        Raises:
            UserError: an operator or a function gets or gives values of the wrong type.
        """
        return self._of_rows(columns, num_rows, "true or false", pyarrow.types.is_boolean).cast(pyarrow.bool_())

    def numbers(self, columns: Columns, num_rows: int) -> pyarrow.DoubleArray:
        """The number that the expression gives for each row, as f64; null if it is unknown.

        Raises:
            UserError: as `truths` does.
        """

        def is_number(kind: pyarrow.DataType) -> bool:
            types = pyarrow.types
            return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind))

        return self._of_rows(columns, num_rows, "a number", is_number).cast(pyarrow.float64())

    def _of_rows(self, columns: Columns, num_rows: int, wanted: str, is_wanted: Any) -> pyarrow.Array:
        by_name = {name.casefold(): name for name in columns}
        if alike := sorted(set(columns) - set(by_name.values())):
            other = by_name[alike[0].casefold()]
            raise UserError(f"columns {alike[0]!r} and {other!r} are one to SQL; rename one of them")
        rows = pyarrow.table({"": pyarrow.nulls(num_rows), **{name: _plain(each) for name, each in columns.items()}})
        connection = _connection()
        connection.register("samples", rows)
        try:
            found = connection.sql(f"{_BEFORE}{self.source}{_AFTER} from samples").to_arrow_table().column(0)
        except duckdb.Error as error:
            raise UserError(f"{_quoted(self.source)}: {_one_line(error)}") from error
        finally:
            connection.unregister("samples")
        if found.null_count < len(found) and not is_wanted(found.type):
            raise UserError(f"{_quoted(self.source)} gives values of type {found.type}, not {wanted}")
        return pyarrow.concat_arrays(found.chunks) if found.num_chunks else pyarrow.array([], found.type)


def _quoted(source: str) -> str:
    return repr(printable(source, 200))


def parse(source: str) -> Expression:
    """Parse an expression, and check that it asks only about one row.

    Raises:
        UserError: it cannot be parsed, or asks for more.
    """
    if len(source) > MOST_CHARACTERS:
        raise UserError(f"an expression of {len(source):,} characters; at most {MOST_CHARACTERS:,}")
    if not source.strip():
        raise UserError("an empty expression; write one such as 'width >= 256'")
    statement = f"{_BEFORE}{source}{_AFTER}"
    try:
        tree = _tree(statement)
    except (duckdb.Error, RecursionError, UnicodeEncodeError) as error:
        raise UserError(f"{_quoted(source)}: {_one_line(error)}") from error
    if tree["error"]:
        before = statement.encode()[: int(tree.get("position", 0))].decode(errors="ignore")
        place = len(before) - len(_BEFORE) + 1
        if place > len(source):  # at our own bracket, which the user does not see
            raise UserError(f"{_quoted(source)}: syntax error at its end")
        at = f", at character {place}" if before else ""
        raise UserError(f"{_quoted(source)}: {_one_line(tree['error_message'])}{at}")
    select = [statement["node"].pop("select_list", []) for statement in tree["statements"]]
    if len(select) != 1 or len(select[0]) != 1 or tree != _empty_tree():
        raise UserError(f"{_quoted(source)} is more than one expression")
    (outermost,) = select[0]
    columns: list[str] = []
    for node in _nodes(outermost):
        if node["class"] not in _KINDS:
            kind = node["class"].lower().replace("_", " ")
            raise UserError(f"{_quoted(source)}: a {kind} has no place in an expression about one sample")
        if node["class"] == "FUNCTION":
            _check_function(node["function_name"].lower())
        if node["class"] == "COLUMN_REF":
            columns.append(node["column_names"][0])
    kind = outermost["type"]
    return Expression(source, tuple(dict.fromkeys(columns)), kind == "CONJUNCTION_AND", kind == "CONJUNCTION_OR")


def parse_conditions(source: str) -> list[Expression]:
    """The expressions between the outermost `and`s, which must all be true.

    Raises:
        UserError: as `parse` does.
    """
    whole = parse(source)
    if not whole.is_and:
        return [whole]
    starts, ends, depth, open_betweens = [0], [], 0, 0
    for word in _WORDS.finditer(source):
        text = word[0].lower()
        depth += (text in ("(", "[", "{", "case")) - (text in (")", "]", "}", "end"))
        if depth == 0 and text == "between":
            open_betweens += 1
        elif depth == 0 and text == "and" and open_betweens:
            open_betweens -= 1
        elif depth == 0 and text == "and":
            ends.append(word.start())
            starts.append(word.end())
    try:
        return [parse(source[start:end].strip()) for start, end in zip(starts, [*ends, None], strict=True)]
    except UserError:  # quotes of another kind
        return [whole]


@functools.cache
def _connection() -> duckdb.DuckDBPyConnection:
    """The connection of this process: it opens no file, its settings are locked, and it has one thread."""
    connection = duckdb.connect(":memory:", config=_LIMITS)
    for macro, definition in _MACROS.items():
        connection.execute(f"create macro {macro} as {definition}")
    connection.execute("set max_expression_depth = 100")
    connection.execute("set enable_external_access = false")  # last: it forbids a choice of `temp_directory`, even none
    connection.execute("set lock_configuration = true")
    return connection


def _check_function(name: str) -> None:
    if name not in FUNCTIONS and name not in _OPERATORS:
        near = difflib.get_close_matches(name, FUNCTIONS, n=1, cutoff=0.7)
        hint = f"did you mean {near[0]}?" if near else "`diptych-shards filter -h` names those that there are"
        raise UserError(f"no function {name!r}; {hint}")


def _tree(statement: str) -> dict[str, Any]:
    """Parse the statement by DuckDB."""
    ((text,),) = (
        _connection().execute("select json_serialize_sql(?::varchar)", [statement.encode().decode()]).fetchall()
    )
    tree: dict[str, Any] = json.loads(text)
    return tree


@functools.cache
def _empty_tree() -> dict[str, Any]:
    tree = _tree(f"{_BEFORE}true{_AFTER}")
    del tree["statements"][0]["node"]["select_list"]
    return tree


def _nodes(node: Any) -> Iterator[dict[str, Any]]:
    """The node and all nodes below it."""
    if isinstance(node, dict) and "class" in node:
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from _nodes(child)


def _plain(column: pyarrow.Array) -> pyarrow.Array:
    """Cast a column to a type that calculates as expected: integers do not overflow, NaN is unknown."""
    types, kind = pyarrow.types, column.type
    if types.is_dictionary(kind):
        return column.cast(kind.value_type)
    if types.is_integer(kind) and not types.is_uint64(kind):
        return column.cast(pyarrow.int64())
    if types.is_floating(kind):
        numbers = column.cast(pyarrow.float64())
        return compute.if_else(compute.is_nan(numbers), pyarrow.scalar(None, pyarrow.float64()), numbers)
    return column


def _one_line(error: object) -> str:
    """DuckDB's message on one line, without the expression that it repeats."""
    text = re.split(r'\n+LINE \d+:| Use "SET', str(error))[0].removeprefix("Binder Error: ")
    way_out = "; number(...) reads one from a text" if "Cannot compare" in text and "VARCHAR" in text else ""
    return printable(text.replace(" You might need to add explicit type casts.", ""), 300) + way_out
