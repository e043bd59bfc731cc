"""The results of one input file: `OUT/NAME.parquet` with its pairs, and `OUT/_index/NAME.json` with its counts.

Each is there whole or not at all. The report is written last: a file that has it is finished, as long as the report
describes the same bytes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from diptych.data.shard_index_file import INDEX_FOLDER
from diptych.errors import UserError
from diptych.files import committed
from diptych_shards.extract.crawl_files import Origin, known_origin
from diptych_shards.extract.pairs import Page

SCHEMA = pa.schema(
    [
        ("url", pa.string()),
        ("caption", pa.string()),
        ("source", pa.string()),
        ("page_url", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("language", pa.string()),
        ("page_licence_url", pa.string()),
        ("warc_file", pa.string()),
        ("record_offset", pa.int64()),
        ("opt_out", pa.string()),
    ]
)
ROWS_PER_GROUP = 1 << 16


@dataclass
class FileReport:
    """Counts of one file, or the sums over all."""

    files: int = 0
    records: Counter[str] = field(default_factory=Counter)
    """Records by what became of them."""
    pages_with_pairs: int = 0
    pairs: Counter[str] = field(default_factory=Counter)
    """Pairs by the source of their caption."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Pictures without a pair, by reason."""
    files_cut: int = 0
    """Files that end within a record."""

    def __add__(self, other: FileReport) -> FileReport:
        return FileReport(
            self.files + other.files,
            self.records + other.records,
            self.pages_with_pairs + other.pages_with_pairs,
            self.pairs + other.pairs,
            self.dropped + other.dropped,
            self.files_cut + other.files_cut,
        )

    def as_json(self, origin: Origin) -> bytes:
        counts = {key: dict(value) if isinstance(value, Counter) else value for key, value in vars(self).items()}
        return json.dumps({**counts, "origin": origin._asdict()}, sort_keys=True, indent=1).encode() + b"\n"

    @classmethod
    def from_json(cls, content: bytes) -> tuple[FileReport, Origin]:
        recorded = json.loads(content)
        report = cls(
            recorded["files"],
            Counter(recorded["records"]),
            recorded["pages_with_pairs"],
            Counter(recorded["pairs"]),
            Counter(recorded["dropped"]),
            recorded.get("files_cut", 0),
        )
        return report, Origin(**recorded["origin"])


def name_of(location: str) -> str:
    """The name of a file's results. Suffixes stay, so that `x.warc.gz` and `x.warc.wat.gz` can both be in OUT."""
    return location.partition("?")[0].rstrip("/").rpartition("/")[2]


def report_path(location: str, out: Path) -> Path:
    return out / INDEX_FOLDER / f"{name_of(location)}.json"


def finished_report(location: str, out: Path) -> FileReport | None:
    """The file's report; None if it is unfinished or if its bytes changed since.

    Raises:
        UserError: the results with its name are those of another file.
    """
    path, table = report_path(location, out), out / f"{name_of(location)}.parquet"
    if not path.exists() or not table.exists():
        return None
    report, origin = FileReport.from_json(path.read_bytes())
    now = known_origin(location)
    if origin.location != now.location:
        raise UserError(
            f"{table} was made of {origin.location}, not of {now.location}: name a new folder, or, if the file has "
            f"moved, remove {path} to have it extracted again"
        )
    return report if now.size is None or now == origin else None


@contextmanager
def errors_name(path: Path) -> Iterator[None]:
    """Name the final file in errors, not the temporary one.

    Raises:
        OSError: any OSError raised within, with this `filename`.
    """
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


class PairWriter:
    """Writes the table in a `with` block; nothing is left if an error is raised. Equal pairs give equal bytes."""

    def __init__(self, path: Path):
        self._path = path
        self._columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}

    def __enter__(self) -> PairWriter:
        with errors_name(self._path), ExitStack() as stack:
            file = stack.enter_context(open(stack.enter_context(committed(self._path)), "wb"))
            # Also closed after an error: a writer that is not closed complains when it is collected.
            self._table = stack.enter_context(pq.ParquetWriter(file, SCHEMA, compression="zstd"))
            self._stack = stack.pop_all()
        return self

    def add(self, page: Page, warc_file: str, record_offset: int | None) -> None:
        columns, pairs = self._columns, page.pairs
        urls, captions = zip(*pairs, strict=True)
        sources, widths, heights = zip(*pairs.values(), strict=True)
        columns["url"] += urls
        columns["caption"] += captions
        columns["source"] += [source.value for source in sources]
        columns["width"] += widths
        columns["height"] += heights
        columns["page_url"] += [page.url] * len(pairs)
        columns["language"] += [page.language] * len(pairs)
        columns["page_licence_url"] += [page.licence_url] * len(pairs)
        columns["warc_file"] += [warc_file] * len(pairs)
        columns["record_offset"] += [record_offset] * len(pairs)
        columns["opt_out"] += [",".join(page.opt_outs) or None] * len(pairs)
        if len(columns["url"]) >= ROWS_PER_GROUP:
            self._write()

    def __exit__(self, *exception: Any) -> None:
        with errors_name(self._path), self._stack.pop_all() as stack:
            if exception[0] is None:
                self._write()
            else:
                stack.__exit__(*exception)

    def _write(self) -> None:
        if self._columns["url"]:
            with errors_name(self._path):
                self._table.write_table(pa.table(self._columns, schema=SCHEMA))
            for column in self._columns.values():
                column.clear()
