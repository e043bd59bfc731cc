"""The files of a finished shard: where they are, what they say, whether they are whole.

They are img2dataset's: 00012.tar, 00012.parquet, 00012_stats.json. `_stats.json` is written last and says that the
shard is done. Our own files are in `_index/`, where no pattern of the output's files finds them: 00012.tar.index (the
members), 00012.outcomes (sizes, and which row failed for which reason).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import KW_ONLY, asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diptych.data.shard_index_file import INDEX_FOLDER, ShardError, index_path, read_shard
from diptych.data.shards import open_index
from diptych.files import commit_file
from diptych_shards.tables.columns import HASH_KINDS, TableError

if TYPE_CHECKING:
    from diptych_shards.pictures.picture import StoredPicture

SUCCESS, FAILED_TO_DOWNLOAD, FAILED_TO_RESIZE = "success", "failed_to_download", "failed_to_resize"
SIZES = ("width", "height", "original_width", "original_height")


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """How shards are cut and named."""

    rows_per_shard: int = 10_000
    shard_digits: int = 5
    """Digits of a shard's number in its name."""
    compute_hash: str = "sha256"
    """The hash of the downloaded bytes, and the name of its column."""

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
    _: KW_ONLY
    message: str | None = None
    """For people, in img2dataset's words if it has some; None for a success."""
    reason: str = ""
    """For programs: one word; empty for a success."""
    suffix: str = ""
    width: int | None = None
    height: int | None = None
    original_width: int | None = None
    original_height: int | None = None
    exif: str | None = None
    digest: str | None = None

    @classmethod
    def of_picture(cls, row: int, picture: StoredPicture, digest: str) -> RowResult:
        """The result of a row whose picture is stored.

        digest: of the bytes that were downloaded.
        """
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
        """All but the row, in types that JSON has."""
        return {name: value for name, value in vars(self).items() if name != "row"}

    @classmethod
    def from_facts(cls, row: int, facts: Mapping[str, Any]) -> RowResult:
        return cls(row, **facts)


@dataclass(frozen=True)
class ShardStats:
    """The content of `_stats.json`; the fields and their order are img2dataset's."""

    count: int
    successes: int
    failed_to_download: int
    failed_to_resize: int
    duration: float
    start_time: float
    end_time: float
    status_dict: dict[str, int]
    """How many rows ended with each message, or with `success`."""


def shard_name(number: int, options: OutputOptions) -> str:
    return f"{number:0{options.shard_digits}d}"


def is_done(out: Path, number: int, options: OutputOptions) -> bool:
    """Whether the shard is finished, and each of its files has the size it was written with."""
    return ShardFiles(out, shard_name(number, options)).are_whole()


def read_stats(out: Path) -> dict[int, ShardStats]:
    """Read the statistics of each shard that has them, in the order of their numbers. Other files are not looked at."""
    names = (path.name.removesuffix("_stats.json") for path in out.glob("*_stats.json"))
    found = sorted((int(name), name) for name in names if name.isdecimal())
    stats = {number: _read_stats(out / f"{name}_stats.json") for number, name in found}
    return {number: read for number, read in stats.items() if read is not None}


def read_failures(out: Path, number: int, options: OutputOptions) -> dict[str, list[int]]:
    """Read which rows of a finished shard failed, by reason."""
    return ShardFiles(out, shard_name(number, options)).read_failures()


def read_finished(out: Path, number: int, options: OutputOptions) -> Iterator[tuple[RowResult, bytes]]:
    """Read back what became of each row, in order, and its stored picture (empty for a failure).

    Raises:
        ShardError: the shard is damaged.
    """
    import pyarrow.parquet

    name = shard_name(number, options)
    reasons = {row: reason for reason, rows in read_failures(out, number, options).items() for row in rows}
    columns = ["status", "error_message", *SIZES, "exif", options.compute_hash]
    table = pyarrow.parquet.read_table(out / f"{name}.parquet", columns=columns).select(columns)
    index = open_index(out / f"{name}.tar")
    num_stored = 0
    for row, facts in enumerate(table.rename_columns(["status", "message", *SIZES, "exif", "digest"]).to_pylist()):
        if facts["status"] == SUCCESS:
            sample = index.sample(0, num_stored)
            num_stored += 1
            suffix = str(sample.picture_suffix)
            yield RowResult(row, suffix=suffix, **facts), index.read(sample, suffix)[suffix]
        else:
            yield RowResult(row, reason=reasons.get(row, ""), **facts), b""


class ShardFiles:
    """The places of one shard's files."""

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
        """Remove all files of the shard, first `_stats.json`, which says that it is done."""
        for path in (self.stats, self.index, self.outcomes, self.tar, self.parquet):
            path.unlink(missing_ok=True)
        for path in (self.tar, self.parquet):
            for partial in path.parent.glob(f"{path.name}.*partial"):
                partial.unlink(missing_ok=True)

    def write_outcomes(self, failures: dict[str, list[int]]) -> None:
        sizes = {"tar": self.tar.stat().st_size, "parquet": self.parquet.stat().st_size}
        # Two lines, so that a check whether the shard is done reads only the first.
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


def _read_stats(path: Path) -> ShardStats | None:
    """Read the statistics; None if the file is missing, torn, or of another program."""
    try:
        fields = json.loads(path.read_bytes())
        return ShardStats(**{name: fields[name] for name in ShardStats.__dataclass_fields__})
    except (OSError, ValueError, KeyError, TypeError):
        return None
