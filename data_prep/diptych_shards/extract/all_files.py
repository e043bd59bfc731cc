"""Extracting many files in processes of this machine. Finished files are passed over; the results do not depend on
the number of processes, on kills, or on the order in which files finish."""

from __future__ import annotations

import fcntl
import multiprocessing
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path

from diptych.files import commit_file
from diptych_shards.extract.one_file import INDEX_FOLDER, FileReport, extract_file, is_done, name_of, report_path
from diptych_shards.extract.options import ExtractError, ExtractOptions

MAX_LOSSES = 2
"""How often a file may be in the hands of a process that dies before it is given up."""


def extract(
    locations: Sequence[str],
    out: Path,
    options: ExtractOptions,
    processes: int,
    is_finished: Callable[[str, FileReport], None],
) -> tuple[FileReport, dict[str, str]]:
    """What came of all files together, and the files that could not be read, each with what went wrong.

    Raises:
        ExtractError: two files would get the same name; `out` was made with other options, or is in use.
        OSError: a full disk.
    """
    _check_names(locations)
    with _locked(out):
        _begin(out, options)
        total = FileReport()
        for location in locations:
            if is_done(location, out):
                total += FileReport.from_json(report_path(location, out).read_bytes())
        missing = [location for location in locations if not is_done(location, out)]
        failures: dict[str, str] = {}
        for location, result in _run(missing, out, options, processes):
            if isinstance(result, FileReport):
                total += result
                is_finished(location, result)
            else:
                failures[location] = result
        return total, failures


def _run(
    locations: list[str], out: Path, options: ExtractOptions, processes: int
) -> Iterator[tuple[str, FileReport | str]]:
    """Each file with its report, or with what went wrong."""
    waiting = locations[::-1]
    losses: Counter[str] = Counter()
    while waiting:
        # What was lost is tried with no other file beside it, so that only its own death counts against it.
        is_suspect = losses[waiting[-1]] > 0
        at_once = 1 if is_suspect else processes
        context = multiprocessing.get_context("spawn")
        running: dict[Future[FileReport], str] = {}
        with ProcessPoolExecutor(min(at_once, len(waiting)), context, initializer=_leave_ctrl_c) as pool:
            try:
                while running or waiting and bool(losses[waiting[-1]]) == is_suspect:
                    while waiting and len(running) < at_once and bool(losses[waiting[-1]]) == is_suspect:
                        location = waiting.pop()
                        running[pool.submit(extract_file, location, out, options)] = location
                    done, _ = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        result = _result(future, out)
                        yield running.pop(future), result
            except BrokenProcessPool:
                for location in running.values():
                    losses[location] += 1
                    if losses[location] > MAX_LOSSES:
                        yield location, "the process that read it died, three times; see whether memory runs out"
                    else:
                        waiting.append(location)
            except BaseException:
                for process in list((pool._processes or {}).values()):
                    process.kill()
                raise


def _result(future: Future[FileReport], out: Path) -> FileReport | str:
    try:
        return future.result()
    except ExtractError as error:
        return str(error)
    except OSError as error:
        if error.filename is not None and Path(error.filename).is_relative_to(out) or error.errno in _OURS:
            raise  # not the input's fault, and no other file would fare better
        return str(error)


_OURS = (28, 122, 27)
"""ENOSPC, EDQUOT, EFBIG."""


def _leave_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _check_names(locations: Sequence[str]) -> None:
    first: dict[str, str] = {}
    for location in locations:
        other = first.setdefault(name_of(location), location)
        if other != location:
            raise ExtractError(
                f"{other} and {location} would both become {name_of(location)}.parquet; rename one, or extract them "
                f"into two folders"
            )


def _begin(out: Path, options: ExtractOptions) -> None:
    path = out / INDEX_FOLDER / "extract.options"
    if path.exists():
        there = path.read_text(encoding="utf-8")
        if there != options.identity:
            raise ExtractError(
                f"{out} was begun with other options: {there} there, {options.identity} now; name a new folder"
            )
    else:
        commit_file(path, options.identity.encode())


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    index = out / INDEX_FOLDER
    try:
        index.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ExtractError(f"{out} is not a folder") from None
    with open(index / ".lock", "wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ExtractError(f"{out}: another extract works in it") from None
        yield
