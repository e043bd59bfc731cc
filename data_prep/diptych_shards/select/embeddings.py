"""Embeddings from another program, in the order of the pictures that they belong to.

A parquet file or a folder of them: a column of keys, a column of lists of numbers. Or the .npz that `diptych embed`
writes. They are gathered in a scratch file, so that memory does not grow with them.
"""

from __future__ import annotations

import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xxhash

from diptych.errors import UserError
from diptych.files import local_path
from diptych.terminal import printable, shown

if TYPE_CHECKING:
    import pyarrow

_ROWS_AT_ONCE = 4_096
_KEYS = ("key", "path", "file", "picture", "name")
_EMBEDDINGS = ("embedding", "embeddings", "image_embedding", "picture_embedding", "picture_embeddings")

Batch = tuple[list[str], np.ndarray]
"""Keys and f32[n, dim]."""


class KeyTable:
    """Positions by key, 16 bytes a key."""

    def __init__(self, keys: Iterator[str], total: int):
        hashes = np.fromiter((xxhash.xxh3_64_intdigest(os.fsencode(key)) for key in keys), np.uint64, total)
        self._order = np.argsort(hashes, kind="stable")
        self._sorted = hashes[self._order]
        self.has_repeats = bool((self._sorted[1:] == self._sorted[:-1]).any())

    def find(self, keys: Sequence[str]) -> np.ndarray:
        """i64: the position of each key, -1 if it is not there."""
        hashes = np.array([xxhash.xxh3_64_intdigest(os.fsencode(key)) for key in keys], np.uint64)
        places = np.minimum(np.searchsorted(self._sorted, hashes), max(len(self._sorted) - 1, 0))
        if not len(self._sorted):
            return np.full(len(keys), -1)
        return np.where(self._sorted[places] == hashes, self._order[places], -1)


def gather_embeddings(
    tables: Sequence[tuple[str, KeyTable, int]], wanted: np.ndarray, column: str | None, scratch: Path
) -> tuple[np.ndarray, np.ndarray]:
    """Gather embeddings: f32[n, dim] of unit length, mapped from a file without a name; i64[n], the position of each.

    tables: (file, keys, position of the first key) for each source. wanted: bool for each position.
    If a key occurs twice, its first embedding counts.

    Raises:
        UserError: a file holds no embeddings, or none for these keys, or they are of several lengths.
    """
    is_open = wanted.copy()
    owners: list[np.ndarray] = []
    dim = 0
    # A file without a name: nothing of it remains when this process ends, even if it is killed.
    with tempfile.TemporaryFile(dir=scratch) as file:
        for location, keys, first in tables:
            if keys.has_repeats:
                raise UserError(f"keys are not unique, so that {shown(location)} may belong to several pictures")
            found = 0
            for names, vectors in _read(location, column):
                places = keys.find(names)
                dim = dim or vectors.shape[1]
                if vectors.shape[1] != dim:
                    raise UserError(f"{shown(location)}: embeddings of {vectors.shape[1]} numbers, others of {dim}")
                lengths = np.linalg.norm(vectors, axis=1)
                mine = np.flatnonzero((places >= 0) & (lengths > 0) & np.isfinite(lengths))
                found += len(mine)
                _, firsts = np.unique(places[mine], return_index=True)
                mine = mine[np.sort(firsts)]
                mine = mine[is_open[places[mine] + first]]
                file.write((vectors[mine] / lengths[mine, None]).astype("<f4").tobytes())
                owners.append(places[mine] + first)
                is_open[owners[-1]] = False
            if not found:
                raise UserError(f"{shown(location)} has no embedding for any of the keys; the first it has is "
                                  f"{printable(_first_key(location, column), 80)!r}")  # fmt: skip
        file.flush()
        owned = np.concatenate(owners)
        if not len(owned):  # an empty file cannot be mapped
            return np.zeros((0, dim), np.float32), owned
        return np.memmap(file, "<f4", "r", shape=(len(owned), dim)), owned


def _read(location: str, column: str | None) -> Iterator[Batch]:
    path = local_path(location)
    if path.suffix == ".npz":
        yield from _read_npz(path)
        return
    paths = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not paths or not paths[0].exists():
        raise UserError(f"{shown(location)}: no parquet file there; name one, a folder of them, or an .npz")
    for each in paths:
        yield from _read_parquet(each, column)


def _read_npz(path: Path) -> Iterator[Batch]:
    with open(path, "rb") as file:
        try:
            with np.load(file, allow_pickle=False) as arrays:
                names, vectors = _names(arrays), arrays["picture_embeddings"]
            if vectors.ndim != 2 or len(names) != len(vectors) or vectors.dtype.kind != "f":
                raise ValueError(f"{len(names)} names, and embeddings {vectors.shape} of {vectors.dtype}")
        except (OSError, ValueError, LookupError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise UserError(f"{shown(path)} does not hold what `diptych embed --pictures` writes") from error
    for start in range(0, len(names), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        yield [str(name) for name in names[part]], vectors[part].astype(np.float32)


def _names(arrays: Mapping[str, np.ndarray]) -> Sequence[str]:
    """The array `pictures`; or their UTF-8 and its ends, where one name is much longer than the others."""
    if "pictures" in arrays:
        names: list[str] = arrays["pictures"].tolist()
        return names
    encoded, ends = arrays["pictures_utf8"].tobytes(), arrays["pictures_ends"].tolist()
    return [os.fsdecode(encoded[start:end]) for start, end in zip([0, *ends], ends, strict=False)]


def _read_parquet(path: Path, column: str | None) -> Iterator[Batch]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            keys, vectors = _columns(file.schema_arrow, path, column)
            for batch in file.iter_batches(_ROWS_AT_ONCE, columns=[keys, vectors]):
                names, rows = _batch(batch[keys], batch[vectors], path)
                if names:
                    yield names, rows
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{shown(path)}: {str(error).splitlines()[0]}") from error


def _columns(schema: pyarrow.Schema, path: Path, column: str | None) -> tuple[str, str]:
    import pyarrow

    types = pyarrow.types
    lists = [f.name for f in schema if types.is_list(f.type) or types.is_fixed_size_list(f.type) or types.is_large_list(f.type)]  # noqa: E501  # fmt: skip
    candidates = [name for name in lists if name in _EMBEDDINGS] or lists
    keys = [name for name in _KEYS if name in schema.names]
    if column is not None and column not in lists:
        raise UserError(f"{shown(path)}: {column!r} is not a column of lists; there are {', '.join(lists) or 'none'}")
    if column is None and len(candidates) != 1:
        found = ", ".join(candidates) or "lists of numbers are needed"
        raise UserError(
            f"{shown(path)} has {len(candidates)} columns of embeddings ({found}); name one with --embedding-column"
        )
    if not keys:
        raise UserError(f"{shown(path)} has no column of keys; call it key")
    return keys[0], column or candidates[0]


def _batch(keys: pyarrow.Array, vectors: pyarrow.Array, path: Path) -> Batch:
    import pyarrow
    import pyarrow.compute as compute

    if pyarrow.types.is_string_view(keys.type):  # Arrow cannot filter these
        keys = keys.cast(pyarrow.large_string())
    has_both = compute.and_(vectors.is_valid(), keys.is_valid())
    keys, vectors = keys.filter(has_both), vectors.filter(has_both)
    lengths = set(compute.list_value_length(vectors).to_pylist())
    if len(lengths) > 1 or 0 in lengths:
        raise UserError(f"{shown(path)}: its embeddings are of several lengths, or empty")
    if not lengths:
        return [], np.zeros((0, 0), np.float32)
    numbers = vectors.flatten().cast(pyarrow.float32()).to_numpy(zero_copy_only=False)
    return [str(key) for key in keys.to_pylist()], numbers.reshape(len(keys), -1)


def _first_key(location: str, column: str | None) -> str:
    return next((names[0] for names, _ in _read(location, column) if names), "")
