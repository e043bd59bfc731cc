"""Read the metadata of a shard's samples, as columns in the order of the samples.

The values come from the parquet file next to the tar if there is one; otherwise from the json members, and the caption
from the txt members. The column `key` is always there.
"""

from __future__ import annotations

import difflib
import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import xxhash

from diptych.data.shard_index_file import Sample, ShardError
from diptych.data.shards import ShardIndex
from diptych.errors import UserError
from diptych.terminal import shown

_END_BYTES = 64 << 10


def table_path(index: ShardIndex, shard_number: int) -> Path:
    """The path of the parquet file next to the tar; the file need not exist."""
    return index.shards[shard_number].path.with_suffix(".parquet")


def table_identity(index: ShardIndex, shard_number: int) -> str:
    """Identify the parquet file next to the tar by its size and its end, which a copy keeps; empty if there is none.

    The end of a parquet file records the size, the least and the greatest value of each part of each column.
    """
    try:
        with open(table_path(index, shard_number), "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - _END_BYTES, 0))
            return f"{size} {xxhash.xxh3_128_hexdigest(file.read())}"
    except FileNotFoundError:
        return ""


def identity_of_tables(index: ShardIndex) -> str:
    """Identify the parquet files next to all tars."""
    each = (table_identity(index, number) for number in range(len(index.shards)))
    return xxhash.xxh3_128_hexdigest("\n".join(each).encode())


def parquet_of(index: ShardIndex, shard_number: int) -> pyarrow.parquet.ParquetFile | None:
    """Open the parquet file next to the tar; None if there is none."""
    path = table_path(index, shard_number)
    if not path.exists():
        return None
    try:
        return pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise ShardError(f"{shown(path)} is damaged: {str(error).splitlines()[0]}") from error


def columns_of_shard(index: ShardIndex, shard_number: int, names: Sequence[str]) -> dict[str, pyarrow.Array]:
    """Read the columns with these names, and `key`, for the samples of a shard.

    Raises:
        UserError: the shard has no column of one of the names.
        ShardError: the shard or its parquet is damaged, or they do not belong together.
    """
    wanted = [name for name in names if name != "key"]
    keys = index.keys(shard_number)
    found = {"key": pyarrow.array(keys, pyarrow.string())}
    file = parquet_of(index, shard_number) if wanted else None
    if file is not None:
        with file:
            found.update(_from_parquet(file, index, shard_number, keys, wanted))
    elif wanted:
        found.update(_from_members(index, shard_number, wanted))
    return found


def rows_of(parquet_keys: Iterable[Any], keys: Sequence[str], shard_name: str) -> np.ndarray:
    """Find the row of each key in the parquet file, as i64.

    Raises:
        ShardError: there is no row for a key.
    """
    places = {key: row for row, key in enumerate(parquet_keys)}
    try:
        return np.array([places[key] for key in keys], np.int64)
    except KeyError as error:
        raise ShardError(
            f"the parquet next to {shown(shard_name)} has no row for the key {error.args[0]!r}; "
            f"remove it to use the json members instead"
        ) from error


def facts_of_samples(index: ShardIndex, shard_number: int, rows: Iterable[int]) -> list[dict[str, Any]]:
    """Read the fields of the json and the caption of each of these samples.

    Raises:
        ShardError: the shard is damaged there.
    """
    return [_facts(index, sample) for sample in index.samples(shard_number, rows)]


def _from_parquet(
    file: pyarrow.parquet.ParquetFile, index: ShardIndex, shard_number: int, keys: Sequence[str], names: Sequence[str]
) -> dict[str, pyarrow.Array]:
    there = file.schema_arrow.names
    name = index.shards[shard_number].name
    for wanted in names:
        if wanted not in there:
            raise UserError(no_column(wanted, there))
    if "key" not in there:
        raise ShardError(f"the parquet next to {shown(name)} has no column `key`")
    table = file.read(columns=["key", *names])
    rows = pyarrow.array(rows_of(table["key"].to_pylist(), keys, name))
    taken = table.select(list(names)).take(rows).combine_chunks()
    return {name: _one_array(taken[name]) for name in names}


def _one_array(column: pyarrow.ChunkedArray) -> pyarrow.Array:
    return pyarrow.concat_arrays(column.chunks) if column.num_chunks else pyarrow.array([], column.type)


def _from_members(index: ShardIndex, shard_number: int, names: Sequence[str]) -> dict[str, pyarrow.Array]:
    values: dict[str, list[Any]] = {name: [] for name in names}
    known: set[str] = {"key", "caption"}
    shard = index.shards[shard_number]
    for sample in index.samples(shard_number):
        facts = _facts(index, sample)
        known.update(facts)
        for name in names:
            values[name].append(facts.get(name))
    for name in names:
        if shard.samples and name not in known:
            raise UserError(f"{shown(shard.name)}: {no_column(name, known)}")
    return {name: _array(values[name]) for name in names}


def _facts(index: ShardIndex, sample: Sample) -> dict[str, Any]:
    """Read the fields of a sample's json, and its caption."""
    texts = index.read(sample, "json", "txt")
    try:
        fields = json.loads(texts.get("json", b"{}"))
    except (ValueError, RecursionError):  # broken JSON is no mistake here: the sample has no fields
        fields = {}
    facts = fields if isinstance(fields, dict) else {}
    if "caption" not in facts and "txt" in texts:
        facts["caption"] = texts["txt"].decode("utf-8", "replace")
    return facts


def _array(values: Sequence[Any]) -> pyarrow.Array:
    """Make an array of JSON values: numbers or booleans if all values are, text if any value is."""
    plain = [value if isinstance(value, bool | int | float | str) else None for value in values]
    kinds = {bool if isinstance(v, bool) else str if isinstance(v, str) else float for v in plain if v is not None}
    if not kinds:
        return pyarrow.nulls(len(plain))
    if kinds == {bool}:
        return pyarrow.array(plain, pyarrow.bool_())
    if str not in kinds:
        return pyarrow.array([None if v is None else _float(v) for v in plain], pyarrow.float64())
    texts = [None if v is None else str(v).encode("utf-8", "backslashreplace").decode() for v in plain]
    return pyarrow.array(texts, pyarrow.string())


def _float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def no_column(name: str, known: Iterable[str]) -> str:
    """The error message for an expression that names a column that is not there."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known[:40])}"
    return f"no column {name!r}; {hint} ({no_text(name)})"


def no_text(name: str) -> str:
    """The part of the message that explains the quotes: a text may have been meant."""
    text = name.replace("'", "''")
    return f"in double quotes or none it names a column, as a text it is '{text}'"
