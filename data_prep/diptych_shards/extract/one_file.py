"""Extract one input file, in any process.

`OUT/NAME.parquet` is written first, `OUT/_index/NAME.json` last: a file that has its report is finished, as long as the
report describes the same bytes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from diptych.errors import UserError
from diptych.files import commit_file
from diptych_shards.extract.charset import as_utf8
from diptych_shards.extract.crawl_files import Origin, known_origin, open_location
from diptych_shards.extract.http_body import EncodingError, decoded_body, read_answer
from diptych_shards.extract.options import ExtractOptions
from diptych_shards.extract.page import language_of, read_page
from diptych_shards.extract.pairs import CaptionSource, DropReason, FoundPage, Page
from diptych_shards.extract.records import ENDS_EARLY, Record, read_records
from diptych_shards.extract.rights import OptOuts
from diptych_shards.extract.wat_pairs import read_wat
from diptych_shards.extract.wat_record import WatError, is_of_page
from diptych_shards.extract.writer import PairWriter, errors_name
from diptych_shards.fetch.permission import RESERVATION

INDEX_FOLDER = "_index"
_HTTP_ROOM_BYTES = 1 << 20


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
        told = json.loads(content)
        report = cls(
            told["files"],
            Counter(told["records"]),
            told["pages_with_pairs"],
            Counter(told["pairs"]),
            Counter(told["dropped"]),
            told.get("files_cut", 0),
        )
        return report, Origin(**told["origin"])


def name_of(location: str) -> str:
    """The name of a file's results; `x.warc.gz` and `x.warc.wat.gz` keep their suffixes, so both can be in OUT."""
    return location.partition("?")[0].rstrip("/").rpartition("/")[2]


def finished_report(location: str, out: Path) -> FileReport | None:
    """The file's report; None if it is unfinished or if its bytes changed since.

    Raises:
        UserError: the results of its name are those of another file.
    """
    path, table = _report_path(location, out), out / f"{name_of(location)}.parquet"
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


def extract_file(location: str, out: Path, options: ExtractOptions) -> FileReport:
    """Write the pairs of one WARC or WAT file and their report; both are durable when it returns.

    Raises:
        OSError: the file cannot be read to its end, or the results cannot be written.
    """
    report = FileReport(files=1)
    file, origin = open_location(location)
    with file, PairWriter(out / f"{name_of(location)}.parquet") as writer:
        for found in pages_of(file, options, report):
            writer.add(found.page, found.warc_file or name_of(location), found.record_offset)
    path = _report_path(location, out)
    with errors_name(path):
        commit_file(path, report.as_json(origin))
    return report


def pages_of(file: IO[bytes], options: ExtractOptions, report: FileReport) -> Iterator[FoundPage]:
    """Yield the pages that have pairs, in the file's order, and count everything in `report`.

    Raises:
        OSError: the file cannot be read to its end.
    """
    dropped: Counter[DropReason] = Counter()
    sources: Counter[CaptionSource] = Counter()
    for record in read_records(file, report.records, max_block_bytes=options.max_page_bytes + _HTTP_ROOM_BYTES):
        kind = record.kind
        if kind == b"metadata":
            found = _of_wat(record, options, report, dropped)
        else:
            page = _of_warc(record, kind, options, report, dropped)
            found = FoundPage(page, None, record.offset) if page is not None else None
        if found is not None and found.page.pairs:
            if not set(options.opt_outs).isdisjoint(found.page.opt_outs):
                dropped[DropReason.OPTED_OUT] += len(found.page.pairs)
                continue
            report.pages_with_pairs += 1
            sources.update([details.source for details in found.page.pairs.values()])
            yield found
    report.files_cut += report.records.pop(ENDS_EARLY, 0) > 0
    report.records += Counter()  # drops what did not occur
    report.dropped.update({reason.value: count for reason, count in dropped.items() if count})
    report.pairs.update({source.value: count for source, count in sources.items()})


def _report_path(location: str, out: Path) -> Path:
    return out / INDEX_FOLDER / f"{name_of(location)}.json"


def _of_wat(
    record: Record, options: ExtractOptions, report: FileReport, dropped: Counter[DropReason]
) -> FoundPage | None:
    if not is_of_page(record.block):
        report.records["metadata of no page"] += 1
        return None
    try:
        found = read_wat(record.block, options, dropped)
    except WatError:
        report.records["broken metadata"] += 1
        return None
    report.records["read"] += 1
    return found if found.warc_file is not None else found._replace(record_offset=record.offset)


def _of_warc(
    record: Record, kind: bytes, options: ExtractOptions, report: FileReport, dropped: Counter[DropReason]
) -> Page | None:
    if kind not in (b"response", b"resource"):
        report.records["of another type"] += 1
        return None
    answer = read_answer(record.block)
    if kind == b"resource" and answer.status == 0:
        answer = answer._replace(
            status=200, headers={b"content-type": record.header(b"Content-Type")}, body=record.block
        )
    if not 200 <= answer.status < 300:
        report.records["answered with an error or a redirect" if answer.status else "no HTTP"] += 1
        return None
    if not answer.is_html:
        report.records["not HTML"] += 1
        return None
    try:
        body = decoded_body(answer, options.max_page_bytes)
    except EncodingError:
        report.records["content encoding unknown or wrong"] += 1
        return None
    if record.is_cut or len(body) == options.max_page_bytes:
        report.records["page cut"] += 1
    report.records["read"] += 1
    language = language_of(answer.text_of(b"content-language"))
    opt_outs = OptOuts(answer.text_of(b"x-robots-tag").split("\n"), answer.text_of(RESERVATION.encode()))
    return read_page(as_utf8(body, answer.charset), record.target, language, options, dropped, opt_outs)
