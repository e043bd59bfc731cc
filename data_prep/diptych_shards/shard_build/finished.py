"""Reading a finished shard back, row by row, so that some of its rows can be tried once more."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from diptych.data.shards import open_index
from diptych_shards.shard_build.output import SUCCESS, OutputOptions, RowResult, read_failures, shard_name


def read_finished(out: Path, number: int, options: OutputOptions) -> Iterator[tuple[RowResult, bytes]]:
    """What became of each row, in order, and the stored picture (empty for a failure).

    Raises:
        ShardError: if the shard is damaged.
    """
    import pyarrow.parquet

    name = shard_name(number, options)
    reasons = {row: reason for reason, rows in read_failures(out, number, options).items() for row in rows}
    facts = ("status", "error_message", "width", "height", "original_width", "original_height", "exif")
    table = pyarrow.parquet.read_table(out / f"{name}.parquet", columns=[*facts, options.compute_hash])
    index = open_index(out / f"{name}.tar")
    stored = 0
    for row, values in enumerate(zip(*(column.to_pylist() for column in table.columns), strict=True)):
        status, message, width, height, original_width, original_height, exif, digest = values
        picture, suffix = b"", ""
        if status == SUCCESS:
            sample = index.sample(0, stored)
            suffix = str(sample.picture_suffix)
            picture = index.read(sample, suffix)[suffix]
            stored += 1
        yield (
            RowResult(
                row,
                status,
                message,
                reasons.get(row, ""),
                suffix,
                width,
                height,
                original_width,
                original_height,
                exif,
                digest,
            ),
            picture,
        )
