"""Shards of ten small rows, written as `build` writes them."""

import io
import time

import pyarrow
from PIL import Image

from diptych_shards.shard_build.output import ShardOutput
from diptych_shards.shard_build.shard_files import OutputOptions, RowResult
from diptych_shards.tables.columns import Columns

OPTIONS = OutputOptions(rows_per_shard=10)
COLUMNS = Columns("URL", "TEXT")


def rows(first=0, num_rows=10, **extra):
    numbers = range(first, first + num_rows)
    return pyarrow.table(
        {
            "SAMPLE_ID": pyarrow.array(numbers, pyarrow.int64()),
            "URL": [f"http://127.0.0.1:45139/{n}.jpg" for n in numbers],
            "TEXT": [None if n == 2 else f"caption {n} é \U0001f600" for n in numbers],
            "similarity": pyarrow.array([0.1 * n for n in numbers], pyarrow.float32()),
            "boxes": pyarrow.array(
                [[[0.1, 0.2, 0.3, 0.4]]] * num_rows, pyarrow.list_(pyarrow.list_(pyarrow.float64()))
            ),
            "flag": [n % 2 == 0 for n in numbers],
            **extra,
        }
    )


def picture(row):
    file = io.BytesIO()
    Image.new("RGB", (64, 64), (row, 0, 0)).save(file, "JPEG")
    return file.getvalue()


def success(row):
    digest = "b0116807bc62d0a774b643449255f8d77b97241fb2c82f23b119937331583365"
    return RowResult(row, "success", suffix="jpg", width=64, height=64, original_width=400, original_height=300 + row,
                     exif="{}", digest=digest)  # fmt: skip


def results(num_rows=10):
    """As in the run that gave the golden values."""
    for row in range(num_rows):
        if row % 7 == 3:
            yield RowResult(row, "failed_to_download", message="HTTP Error 404: Not Found", reason="http_404")
        elif row % 7 == 5:
            yield RowResult(row, "failed_to_resize", message="Image decoding error", reason="not_a_picture")
        else:
            yield success(row)


def write(out, number=0, table=None, found=None, columns=COLUMNS, options=OPTIONS):
    table = rows(10 * number) if table is None else table
    output = ShardOutput(out, number, table, columns, options)
    return output.write(results(table.num_rows) if found is None else found, picture, started=time.time())
