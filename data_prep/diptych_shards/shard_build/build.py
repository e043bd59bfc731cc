"""Build the shards of a table of URLs.

The table alone decides which rows go to which shard. A shard that has its statistics file is done and is not touched
again. All others are started, or continued from their journals.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from diptych.data.shard_index_file import INDEX_FOLDER
from diptych.data.shard_list import write_folder_list
from diptych.terminal import shown
from diptych_shards.fetch.outcome import FetchReason
from diptych_shards.fetch.resolver import parse_entry
from diptych_shards.run.engine import Engine
from diptych_shards.run.out_folder import OutFolder, read_state
from diptych_shards.shard_build.build_progress import BuildProgress
from diptych_shards.shard_build.options import BuildOptions
from diptych_shards.shard_build.shard import ShardTask
from diptych_shards.shard_build.shard_files import SUCCESS, is_done, read_failures, read_stats
from diptych_shards.shard_build.workers import build_shards
from diptych_shards.tables.table import Table

_FORMAT = "diptych-build-1"


@dataclass(frozen=True)
class BuildReport:
    """How many shards a build has, and what became of its rows."""

    shards: int
    outcomes: Counter[str]
    """Rows by outcome: `success`, or the reason of the failure."""


def build(
    table: Table,
    out: Path,
    options: BuildOptions,
    engine: Engine,
    progress: BuildProgress,
    retry: frozenset[str] = frozenset(),
) -> BuildReport:
    """Make the shards of the table in `out`, or continue a build that was stopped.

    retry: reasons of failures to try again in shards that are done (`all`: every failure). Any of them adds
        `host_given_up`, since most of those URLs were never asked for.

    Raises:
        UserError: `out` holds something else, or a build of another table or with other options.
        ValueError: an entry of `resolve` is malformed; `out` is unchanged.
        OSError: the disk is full, or a folder cannot be written.
    """
    if retry:
        retry |= {FetchReason.HOST_GIVEN_UP.value}
    for entry in options.resolve:
        parse_entry(entry)
    options = _in_the_order_of_the_start(out, options)
    folder = OutFolder(
        out,
        "build",
        format=_FORMAT,
        options=options.deciding,
        inputs={"table": table.fingerprint},
        if_input_differs=f"the table is not the one that {shown(out)} was started with: it was changed, or columns are "
        f"chosen otherwise; put it back, or name another folder",
    )
    with folder.opened(finished=False):
        done = _outcomes_of_done(out, options)
        again = {number for number, outcomes in done.items() if _failures(outcomes, retry)}
        folder.record(finished=False)
        keep = done.keys() - again
        about_rows = table.about_rows if table.num_rows is None else None
        progress.start(table.num_rows, about_rows, sum((done[number] for number in keep), Counter()))
        tasks = (
            ShardTask(number, rows, table.columns, retry=retry if number in again else frozenset())
            for number, rows in table.shards(
                options.output.rows_per_shard, skip=keep.__contains__, spread=options.spread_rows
            )
        )
        finished = {number: done[number] for number in keep}
        for report in build_shards(tasks, out, options, engine, progress.add):
            finished[report.number] = _outcomes(out, report.number, report.successes, options)
            progress.shard_is_done(report)
        total: Counter[str] = sum(finished.values(), Counter())
        for journal in folder.index.glob("*.journal"):  # left by a process killed just after it finished a shard
            journal.unlink()
        write_folder_list(out)
        folder.record(finished=True, outcomes=dict(total.most_common()))
        return BuildReport(len(finished), total)


def _in_the_order_of_the_start(out: Path, options: BuildOptions) -> BuildOptions:
    """The options, without spreading rows if the build in `out` was started in the order of the table."""
    state = out / INDEX_FOLDER / "build.json"
    if not state.exists() or "order" in read_state(state, "options")["options"]:
        return options
    return replace(options, spread_rows=False)


def _outcomes_of_done(out: Path, options: BuildOptions) -> dict[int, Counter[str]]:
    """Count the rows of each finished, whole shard by outcome."""
    return {
        number: _outcomes(out, number, stats.successes, options)
        for number, stats in read_stats(out).items()
        if is_done(out, number, options.output)
    }


def _outcomes(out: Path, number: int, successes: int, options: BuildOptions) -> Counter[str]:
    failures = read_failures(out, number, options.output)
    return Counter({SUCCESS: successes, **{reason: len(rows) for reason, rows in failures.items()}})


def _failures(outcomes: Counter[str], retry: frozenset[str]) -> set[str]:
    """The failures among the outcomes that are to be tried again."""
    failures = outcomes.keys() - {SUCCESS}
    return failures if "all" in retry else failures & retry
