"""Extract the pairs of many files, on any engine.

Finished files are skipped; the results do not depend on the number of processes, on kills, or on the order that
files finish in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import IO

from diptych.errors import UserError
from diptych.files import commit_file
from diptych_shards.extract.charset import as_utf8
from diptych_shards.extract.crawl_files import open_location, require_readable
from diptych_shards.extract.http_body import EncodingError, decoded_body, read_answer
from diptych_shards.extract.options import ExtractOptions
from diptych_shards.extract.page import language_of, read_page
from diptych_shards.extract.pairs import CaptionSource, DropReason, FoundPage, Page
from diptych_shards.extract.records import ENDS_EARLY, Record, read_records
from diptych_shards.extract.results import FileReport, PairWriter, errors_name, finished_report, name_of, report_path
from diptych_shards.extract.rights import OptOuts
from diptych_shards.extract.wat_pairs import read_wat
from diptych_shards.extract.wat_record import WatError, is_of_page
from diptych_shards.fetch.permission import RESERVATION
from diptych_shards.run.engine import Engine
from diptych_shards.run.out_folder import OutFolder

_HTTP_ROOM_BYTES = 1 << 20


@dataclass(frozen=True)
class Failure:
    """Why a file could not be read."""

    why: str
    """A line that contains its name."""
    is_missing: bool = False
    """Trying again does not help."""


def extract(
    locations: Sequence[str],
    out: Path,
    options: ExtractOptions,
    engine: Engine,
    is_finished: Callable[[str, FileReport], None],
) -> tuple[FileReport, dict[str, Failure]]:
    """Extract all files; return their counts together, and the files that could not be read, each with the reason.

    Raises:
        UserError: two files would get the same name, or one got it before; no package can read from where a file is;
            `out` was started with other options, holds something else, or is in use.
        OSError: a full disk.
    """
    _check_names(locations)
    require_readable(locations)
    with OutFolder(out, "extract", options=asdict(options), state_name="extract.options").opened():
        reports = {location: finished_report(location, out) for location in locations}
        missing = [location for location, report in reports.items() if report is None]
        total = FileReport()
        for location, report in reports.items():
            if report is not None:
                total += report
                is_finished(location, report)
        failures: dict[str, Failure] = {}
        results = engine.map(partial(_extract_or_say, out.resolve(), options), missing, lost=_lost)
        for location, result in zip(missing, results, strict=True):
            if isinstance(result, FileReport):
                total += result
                is_finished(location, result)
            else:
                failures[location] = result
        return total, failures


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
    path = report_path(location, out)
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


def _lost(location: str) -> Failure:
    return Failure(f"{location}: the process that read it died, twice; see whether memory runs out")


def _extract_or_say(out: Path, options: ExtractOptions, location: str) -> FileReport | Failure:
    """The file's report, or its failure; errors of the output are raised."""
    try:
        return extract_file(location, out, options)
    except UserError as error:
        return Failure(str(error))
    except OSError as error:
        if error.filename is not None and Path(error.filename).is_relative_to(out):
            raise
        why = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        return Failure(why if location in why else f"{location}: {why}", isinstance(error, FileNotFoundError))


def _check_names(locations: Sequence[str]) -> None:
    first: dict[str, str] = {}
    for location in locations:
        other = first.setdefault(name_of(location), location)
        if other != location:
            raise UserError(
                f"{other} and {location} would both become {name_of(location)}.parquet; rename one, or extract them "
                f"into two folders"
            )


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
