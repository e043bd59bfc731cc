"""Extracting many files, on any engine. Finished files are passed over; the results do not depend on
the number of processes, on kills, or on the order in which files finish."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from diptych.errors import UserError
from diptych_shards.extract.crawl_files import require_readable
from diptych_shards.extract.one_file import FileReport, extract_file, finished_report, name_of
from diptych_shards.extract.options import ExtractOptions
from diptych_shards.run.engine import Engine
from diptych_shards.run.out_folder import OutFolder


@dataclass(frozen=True)
class Failure:
    """Why a file could not be read."""

    why: str
    """A line with its name."""
    is_missing: bool = False
    """Trying again does not help."""


def extract(
    locations: Sequence[str],
    out: Path,
    options: ExtractOptions,
    engine: Engine,
    is_finished: Callable[[str, FileReport], None],
) -> tuple[FileReport, dict[str, Failure]]:
    """What came of all files together, and the files that could not be read, each with what went wrong.

    Raises:
        UserError: two files would get the same name, or one got it before; nothing reads from where a file is.
        UserError: `out` was started with other options, holds something else, or is in use.
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


def _lost(location: str) -> Failure:
    return Failure(f"{location}: the process that read it died, twice; see whether memory runs out")


def _extract_or_say(out: Path, options: ExtractOptions, location: str) -> FileReport | Failure:
    """The file's report, or what went wrong; what is not its own fault is raised."""
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
