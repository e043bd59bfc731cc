"""Decide what depends on all pairs: which are duplicates, how many each query has, and so which pairs are kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from diptych_shards.curate.balance import keep_probabilities, query_probabilities, uniforms
from diptych_shards.curate.duplicates import FOUND, RECORD, find_duplicates, num_shares, place, row_of
from diptych_shards.curate.examine import Examined, Setup
from diptych_shards.curate.external_sort import merge_records, merge_to_few, num_records, read_range, write_sorted
from diptych_shards.curate.pairs import Unit
from diptych_shards.curate.rules import CODES, REASONS
from diptych_shards.curate.state import Output, commit_array
from diptych_shards.run.engine import Engine
from diptych_shards.run.progress import map_with_progress

UNITS_AT_ONCE = 16
"""Units whose duplicates are read together."""


@dataclass
class Decided:
    """Counts of pairs."""

    reasons: np.ndarray
    """Pairs by the place of their reason in REASONS."""
    query_kept: np.ndarray
    """For each query, the kept pairs whose captions contain it."""
    kept_by_unit: list[int] = field(default_factory=list)
    languages: Counter[str] = field(default_factory=Counter)
    """Kept pairs by language."""

    def add(self, other: Decided) -> None:
        self.reasons += other.reasons
        self.query_kept += other.query_kept
        self.kept_by_unit += other.kept_by_unit
        self.languages.update(other.languages)


def decide(setup: Setup, units: Sequence[Unit], num_queries: int, engine: Engine) -> tuple[np.ndarray, Decided]:
    """Decide about all pairs, and write each unit's reasons to OUT; all units must have been examined.

    Returns how many captions, without duplicates, contain each query, and counts of the pairs.

    num_queries: 0 if there is no list of queries.
    """
    output = Output(setup.out)
    duplicates = _find_duplicates(setup, units, engine)
    groups = [tuple(units[first : first + UNITS_AT_ONCE]) for first in range(0, len(units), UNITS_AT_ONCE)]
    if not output.counts().exists():
        counts = np.zeros(num_queries, np.int64)
        for of_group in map_with_progress(
            engine, partial(_count, setup, duplicates, num_queries), groups, "group counted"
        ):
            counts += of_group
        commit_array(output.counts(), counts)

    decided = _nothing(num_queries)
    for decided_of_group in map_with_progress(
        engine, partial(_decide, setup, duplicates, num_queries), groups, "group decided"
    ):
        decided.add(decided_of_group)
    return np.load(output.counts()), decided


def _find_duplicates(setup: Setup, units: Sequence[Unit], engine: Engine) -> list[Path]:
    """Find all duplicates; return sorted files of FOUND."""
    output = Output(setup.out)
    records = merge_to_few(
        engine,
        [output.records(unit.number) for unit in units],
        partial(merge_records, RECORD),
        partial(output.merged, "records"),
    )
    shares = range(num_shares(num_records(records, RECORD)))
    found = list(
        map_with_progress(
            engine, partial(_search, setup, records, len(shares)), shares, "share searched for duplicates"
        )
    )
    return merge_to_few(engine, found, partial(merge_records, FOUND), partial(output.merged, "duplicates"))


def _search(setup: Setup, records: Sequence[Path], num_shares: int, share: int) -> Path:
    """Find the duplicates in a share of the hashes, unless their file is there; return the file."""
    path = Output(setup.out).duplicates(share)
    if not path.exists():
        write_sorted(path, find_duplicates(records, share, num_shares))
    return path


def _count(setup: Setup, duplicates: Sequence[Path], num_queries: int, group: Sequence[Unit]) -> np.ndarray:
    """Count the pairs of the group whose captions contain each query."""
    counts = np.zeros(num_queries, np.int64)
    for _, examined in _without_duplicates(setup, duplicates, group):
        counts += _of_queries(examined, examined.reasons == 0, num_queries)
    return counts


def _decide(setup: Setup, duplicates: Sequence[Path], num_queries: int, group: Sequence[Unit]) -> Decided:
    """Decide about the pairs of a group, and write the reasons of each unit to OUT."""
    output, options = Output(setup.out), setup.options
    probabilities = query_probabilities(np.load(output.counts()), options.pairs_per_query)
    decided = _nothing(num_queries)
    for unit, examined in _without_duplicates(setup, duplicates, group):
        if options.queries is not None:
            chances = keep_probabilities(examined.matches, probabilities)
            stays = uniforms(examined.pair_hashes, options.seed) < chances
            examined.reasons[(examined.reasons == 0) & ~stays] = CODES["balanced_away"]
        path = output.decided(unit.number)
        if not path.exists():
            commit_array(path, examined.reasons)
        decided.add(_sums(examined, num_queries))
    return decided


def _without_duplicates(
    setup: Setup, duplicates: Sequence[Path], group: Sequence[Unit]
) -> Iterator[tuple[Unit, Examined]]:
    """Yield neighbouring units; the pairs that repeat others have their reason in them."""
    found = read_range(duplicates, FOUND, place(group[0].number, 0), place(group[-1].number + 1, 0))
    found.sort(order="key")
    firsts = np.searchsorted(found["key"], [place(unit.number, 0) for unit in group])
    for unit, of_unit in zip(group, np.split(found, firsts[1:]), strict=True):
        examined = Examined.load(Output(setup.out).examined(unit.number))
        rows = row_of(of_unit["key"])
        examined.reasons[rows[of_unit["is_exact"]]] = CODES["exact_duplicate"]
        examined.reasons[rows[~of_unit["is_exact"]]] = CODES["near_duplicate"]
        yield unit, examined


def _nothing(num_queries: int) -> Decided:
    return Decided(np.zeros(len(REASONS), np.int64), np.zeros(num_queries, np.int64))


def _sums(examined: Examined, num_queries: int) -> Decided:
    """The counts of one unit."""
    is_kept = examined.reasons == 0
    languages, numbers = np.unique(examined.languages[is_kept], return_counts=True)
    return Decided(
        np.bincount(examined.reasons, minlength=len(REASONS)),
        _of_queries(examined, is_kept, num_queries),
        [int(np.count_nonzero(is_kept))],
        Counter(dict(zip(languages.tolist(), numbers.tolist(), strict=True))),
    )


def _of_queries(examined: Examined, rows: np.ndarray, num_queries: int) -> np.ndarray:
    return np.bincount(examined.matches.only(rows).ids, minlength=num_queries)
