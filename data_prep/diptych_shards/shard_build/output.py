"""A finished shard on disk, as img2dataset's users know it: 00012.tar, 00012.parquet, 00012_stats.json.

`_stats.json` is written last and says that the shard is done. Our own files are in `_index/`, where no glob over the
output's files meets it: 00012.tar.index (the members), 00012.outcomes (sizes, and which row failed for which reason).
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diptych.data.shard_index_file import INDEX_FOLDER, ShardError, index_path, read_shard
from diptych.data.shard_writer import ShardWriter
from diptych.files import commit_file, committed
from diptych_shards.tables.columns import HASH_KINDS, Columns, TableError
from diptych_shards.tables.json_text import json_texts, template

if TYPE_CHECKING:
    import pyarrow

SUCCESS, FAILED_TO_DOWNLOAD, FAILED_TO_RESIZE = "success", "failed_to_download", "failed_to_resize"
_RESULTS = ("key", "status", "error_message", "width", "height", "original_width", "original_height", "exif")
_NUMBERS = frozenset(("width", "height", "original_width", "original_height"))
_MAX_MESSAGES = 100_000
_ROWS_AT_ONCE = 1_000


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """How shards are cut and named."""

    rows_per_shard: int = 10_000
    shard_digits: int = 5
    """Shards are named by their number, padded to so many digits."""
    compute_hash: str = "sha256"
    """Of the downloaded bytes; a column of that name."""

    def __post_init__(self) -> None:
        if self.rows_per_shard < 1:
            raise TableError(f"rows_per_shard is {self.rows_per_shard}; it must be at least 1")
        if not 1 <= self.shard_digits <= 12:
            raise TableError(f"shard_digits is {self.shard_digits}; it must be 1 to 12")
        if self.compute_hash not in HASH_KINDS:
            raise TableError(f"compute_hash {self.compute_hash!r} is not one of {', '.join(HASH_KINDS)}")


@dataclass(frozen=True)
class RowResult:
    """What became of one row."""

    row: int
    status: str
    message: str | None = None
    """For people, in img2dataset's words where it has some; None for a success."""
    reason: str = ""
    """For programs: one word."""
    suffix: str = ""
    width: int | None = None
    height: int | None = None
    original_width: int | None = None
    original_height: int | None = None
    exif: str | None = None
    digest: str | None = None

    @classmethod
    def of_picture(cls, row: int, picture: Any, digest: str) -> RowResult:
        """picture: a StoredPicture; digest: of the bytes that were downloaded."""
        return cls(
            row,
            SUCCESS,
            suffix=picture.suffix,
            width=picture.width,
            height=picture.height,
            original_width=picture.original_width,
            original_height=picture.original_height,
            exif=picture.exif,
            digest=digest,
        )

    def facts(self) -> dict[str, Any]:
        """All but the row, as JSON can hold it."""
        return {name: value for name, value in vars(self).items() if name != "row"}

    @classmethod
    def from_facts(cls, row: int, facts: Mapping[str, Any]) -> RowResult:
        return cls(row, **facts)


@dataclass(frozen=True)
class ShardStats:
    """What `_stats.json` says; the fields and their order are img2dataset's."""

    count: int
    successes: int
    failed_to_download: int
    failed_to_resize: int
    duration: float
    start_time: float
    end_time: float
    status_dict: dict[str, int]
    """How many rows ended with which message, or with `success`."""


def shard_name(number: int, options: OutputOptions) -> str:
    return f"{number:0{options.shard_digits}d}"


def shard_key(number: int, row: int, rows_per_shard: int, digits: int = 5) -> str:
    """The key of a row: row 3 of shard 12 is `000120003` with 10,000 rows a shard."""
    row_digits = len(str(rows_per_shard - 1)) if rows_per_shard > 1 else 0
    return f"{number * 10**row_digits + row:0{row_digits + digits}d}"


class ShardOutput:
    """The files of one shard. Equal rows and results give equal bytes, times in `_stats.json` apart."""

    def __init__(self, out: Path, number: int, rows: pyarrow.Table, columns: Columns, options: OutputOptions):
        self.name = shard_name(number, options)
        self._files = _Files(out, self.name)
        self._number = number
        self._rows = rows
        self._columns = columns
        self._options = options

    def write(self, results: Iterable[RowResult], picture: Callable[[int], bytes], *, started: float) -> int:
        """Write the shard, whole and durably; the number of pictures in it.

        results: one for every row, in their order. picture: the stored bytes of a row that succeeded.
        """
        import pyarrow

        self._files.remove()
        schema = output_schema(self._rows.schema, self._columns, self._options)
        given = self._given().rename_columns(schema.names[: self._rows.num_columns])
        messages: Counter[str] = Counter()
        statuses: Counter[str] = Counter()
        failures: dict[str, list[int]] = {}
        parts = []
        remaining = iter(results)
        with ShardWriter(self._files.tar.parent, self._files.tar.name) as tar:
            for start in range(0, given.num_rows, _ROWS_AT_ONCE):
                rows = given.slice(start, _ROWS_AT_ONCE)
                found = list(islice(remaining, rows.num_rows))
                if [result.row for result in found] != list(range(start, start + rows.num_rows)):
                    raise ValueError(f"shard {self.name}: a result for each row is needed, in their order")
                part = self._with_results(rows, found, schema)
                self._add_successes(tar, part, found, picture)
                parts.append(part)
                for result in found:
                    statuses[result.status] += 1
                    messages[_text(result.message) or result.status] += 1
                    if result.status != SUCCESS:
                        failures.setdefault(result.reason, []).append(result.row)
            _write_parquet(pyarrow.concat_tables(parts) if parts else schema.empty_table(), self._files.parquet)
        self._files.write_outcomes(failures)
        ended = time.time()
        stats = ShardStats(
            count=given.num_rows,
            successes=statuses[SUCCESS],
            failed_to_download=statuses[FAILED_TO_DOWNLOAD],
            failed_to_resize=statuses[FAILED_TO_RESIZE],
            duration=ended - started,
            start_time=started,
            end_time=ended,
            status_dict=_capped(messages),
        )
        self._files.write_stats(stats)
        return stats.successes

    def _given(self) -> pyarrow.Table:
        """The table's own columns in the order in which they are written."""
        last = [name for name in (self._columns.caption, self._columns.url) if name is not None]
        return self._rows.select([*_carried(self._rows.column_names, self._columns), *last])

    def _with_results(self, rows: pyarrow.Table, found: list[RowResult], schema: pyarrow.Schema) -> pyarrow.Table:
        import pyarrow

        options = self._options
        keys = [shard_key(self._number, r.row, options.rows_per_shard, options.shard_digits) for r in found]
        values: dict[str, list[Any]] = {
            "key": keys,
            "status": [result.status for result in found],
            "error_message": [_text(result.message) for result in found],
            **{name: [getattr(result, name) for result in found] for name in _RESULTS[3:]},
            options.compute_hash: [result.digest for result in found],
        }
        arrays = [pyarrow.array(values[field.name], field.type) for field in list(schema)[rows.num_columns :]]
        return pyarrow.Table.from_arrays([*rows.columns, *arrays], schema=schema)

    def _add_successes(
        self, tar: ShardWriter, part: pyarrow.Table, found: list[RowResult], picture: Callable[[int], bytes]
    ) -> None:
        import pyarrow

        good = [place for place, result in enumerate(found) if result.status == SUCCESS]
        kept = part if len(good) == len(found) else part.take(pyarrow.array(good, pyarrow.int64()))
        captions: Sequence[str | None] | None = None
        if self._columns.caption is not None:
            captions = kept["caption"].to_pylist()
        keys = kept["key"].to_pylist()
        layout = template(part.column_names)
        for place, (key, values) in enumerate(zip(keys, _rows_as_json(kept), strict=True)):
            result = found[good[place]]
            members = {result.suffix: picture(result.row)}
            if captions is not None:
                members["txt"] = (captions[place] or "").encode()
            members["json"] = (layout % values).encode()
            tar.add(key, members)


def output_schema(rows: pyarrow.Schema, columns: Columns, options: OutputOptions) -> pyarrow.Schema:
    """The columns of every shard's parquet: what is carried along, caption, url, and what became of the row."""
    import pyarrow

    own = [*(["caption"] if columns.caption else []), "url", *_RESULTS, options.compute_hash]
    taken = set(own)
    fields = []
    for name in _carried(rows.names, columns):
        free = name
        while free in taken:
            free = f"given_{free}"
        taken.add(free)
        fields.append(pyarrow.field(free, rows.field(name).type))
    return pyarrow.schema(
        [*fields, *(pyarrow.field(name, pyarrow.int32() if name in _NUMBERS else pyarrow.string()) for name in own)]
    )


def is_done(out: Path, number: int, options: OutputOptions) -> bool:
    """Whether the shard is there, finished, with every file of the size it was written with."""
    return _Files(out, shard_name(number, options)).are_whole()


def read_stats(out: Path) -> dict[int, ShardStats]:
    """The statistics of every shard that says it is done, by its number, whatever its other files are like."""
    return {number: stats for _, number, stats in _told(out)}


def read_failures(out: Path, number: int, options: OutputOptions) -> dict[str, list[int]]:
    """Of a shard that is done: which rows failed, by reason."""
    return _Files(out, shard_name(number, options)).read_failures()


class _Files:
    """Where the files of one shard are."""

    def __init__(self, out: Path, name: str):
        self.tar = out / f"{name}.tar"
        self.parquet = out / f"{name}.parquet"
        self.stats = out / f"{name}_stats.json"
        self.index = index_path(self.tar)
        self.outcomes = out / INDEX_FOLDER / f"{name}.outcomes"

    def are_whole(self) -> bool:
        try:
            sizes = self.read_sizes()
            return (
                _read_stats(self.stats) is not None
                and self.parquet.stat().st_size == sizes["parquet"]
                and self.tar.stat().st_size == sizes["tar"]
                and read_shard(self.tar).num_bytes == sizes["tar"]
            )
        except (OSError, ValueError, KeyError, TypeError, ShardError):
            return False

    def remove(self) -> None:
        """Remove all files of the shard; first `_stats.json`, which says that it is done."""
        for path in (self.stats, self.index, self.outcomes, self.tar, self.parquet):
            path.unlink(missing_ok=True)
        for path in (self.tar, self.parquet):
            for partial in path.parent.glob(f"{path.name}.*partial"):
                partial.unlink(missing_ok=True)

    def write_outcomes(self, failures: dict[str, list[int]]) -> None:
        sizes = {"tar": self.tar.stat().st_size, "parquet": self.parquet.stat().st_size}
        # Two lines: who only asks whether a shard is done need not read the second.
        lines = f"{json.dumps({'bytes': sizes})}\n{json.dumps(dict(sorted(failures.items())))}\n"
        commit_file(self.outcomes, lines.encode())

    def read_sizes(self) -> dict[str, int]:
        with open(self.outcomes, "rb") as file:
            sizes: dict[str, int] = json.loads(file.readline())["bytes"]
        return sizes

    def read_failures(self) -> dict[str, list[int]]:
        failures: dict[str, list[int]] = json.loads(self.outcomes.read_bytes().splitlines()[1])
        return failures

    def write_stats(self, stats: ShardStats) -> None:
        commit_file(self.stats, json.dumps(asdict(stats), indent=4).encode())


def _told(out: Path) -> Iterator[tuple[str, int, ShardStats]]:
    """Name, number and statistics of the shards that say they are done, in the order of their numbers."""
    names = (path.name.removesuffix("_stats.json") for path in out.glob("*_stats.json"))
    for number, name in sorted((int(name), name) for name in names if name.isdecimal()):
        if (stats := _read_stats(out / f"{name}_stats.json")) is not None:
            yield name, number, stats


def _read_stats(path: Path) -> ShardStats | None:
    """Read the statistics; None if the file is missing, torn, or of another program."""
    try:
        fields = json.loads(path.read_bytes())
        return ShardStats(**{name: fields[name] for name in ShardStats.__dataclass_fields__})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_parquet(table: pyarrow.Table, path: Path) -> None:
    import pyarrow.parquet

    with committed(path) as partial:
        pyarrow.parquet.write_table(table.combine_chunks(), partial)


def _carried(names: Sequence[str], columns: Columns) -> list[str]:
    return [name for name in names if name not in (columns.url, columns.caption)]


def _rows_as_json(table: pyarrow.Table) -> Iterator[tuple[str, ...]]:
    """Each row's values as JSON, indented as they stand in the file."""
    return zip(*(json_texts(column) for column in table.columns), strict=True)


def _text(message: str | None) -> str | None:
    """The message, with what UTF-8 cannot hold replaced."""
    return None if message is None else message.encode("utf-8", "replace").decode()


def _capped(messages: Counter[str]) -> dict[str, int]:
    if len(messages) <= _MAX_MESSAGES:
        return dict(messages)
    return dict(messages.most_common(_MAX_MESSAGES // 2))
