"""What depends on all pairs: which are duplicates, how many each query has, and so which pairs stay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from diptych_shards.curate.balance import keep_probabilities, query_probabilities, uniforms
from diptych_shards.curate.duplicates import find_duplicates, num_partitions, of_unit
from diptych_shards.curate.examine import Examined
from diptych_shards.curate.options import CurateOptions
from diptych_shards.curate.pairs import Unit
from diptych_shards.curate.reasons import CODES, REASONS
from diptych_shards.curate.state import Output, commit_array


@dataclass
class Decided:
    """How many pairs there are of which kind."""

    reasons: np.ndarray = field(default_factory=lambda: np.zeros(len(REASONS), np.int64))
    """By place in REASONS."""
    kept_by_unit: list[int] = field(default_factory=list)
    languages: Counter[str] = field(default_factory=Counter)
    """Of kept pairs."""
    query_counts: np.ndarray | None = None
    """Pairs in whose captions each query stands, once duplicates are gone."""
    query_kept: np.ndarray | None = None
    """Those of them that stay."""


class Decider:
    def __init__(self, output: Output, options: CurateOptions, units: Sequence[Unit], num_queries: int | None):
        self._output = output
        self._options = options
        self._units = units
        self._num_queries = num_queries
        self._partitions = range(0)

    def find_duplicates(self) -> Iterator[int]:
        """Once for every share of the pairs; gives how many shares there are."""
        records = [self._output.records(unit.number) for unit in self._units]
        num_pairs = sum(len(np.load(path, mmap_mode="r")) for path in records)
        self._partitions = range(num_partitions(num_pairs))
        for partition in self._partitions:
            path = self._output.duplicates(partition)
            if not path.exists():
                commit_array(path, find_duplicates(records, partition, len(self._partitions)))
            yield len(self._partitions)

    def count(self) -> Iterator[np.ndarray]:
        """The counts of each query so far, once for every unit."""
        counts = np.zeros(self._num_queries or 0, np.int64)
        for unit in self._units:
            examined = self._without_duplicates(unit)
            counts += self._of_queries(examined, examined.reasons == 0)
            yield counts

    def decide(self, counts: np.ndarray) -> Iterator[Decided]:
        """Keep the reasons of each unit in OUT; gives the sums so far, once for every unit."""
        decided = Decided()
        if self._num_queries is not None:
            decided.query_counts, decided.query_kept = counts, np.zeros(self._num_queries, np.int64)
        probabilities = query_probabilities(counts, self._options.pairs_per_query)
        for unit in self._units:
            examined = self._without_duplicates(unit)
            if self._num_queries is not None:
                stays = uniforms(examined.pair_hashes, self._options.seed) < keep_probabilities(
                    examined.matches, probabilities
                )
                examined.reasons[(examined.reasons == 0) & ~stays] = CODES["balanced_away"]
            path = self._output.decided(unit.number)
            if not path.exists():
                commit_array(path, examined.reasons)
            self._add(decided, examined)
            yield decided

    def _without_duplicates(self, unit: Unit) -> Examined:
        examined = Examined.load(self._output.examined(unit.number))
        found = of_unit([self._output.duplicates(partition) for partition in self._partitions], unit.number)
        examined.reasons[found["row"][found["is_exact"]]] = CODES["exact_duplicate"]
        examined.reasons[found["row"][~found["is_exact"]]] = CODES["near_duplicate"]
        return examined

    def _of_queries(self, examined: Examined, rows: np.ndarray) -> np.ndarray:
        return np.bincount(examined.matches.only(rows).ids, minlength=self._num_queries or 0)

    def _add(self, decided: Decided, examined: Examined) -> None:
        is_kept = examined.reasons == 0
        decided.reasons += np.bincount(examined.reasons, minlength=len(REASONS))
        decided.kept_by_unit.append(int(np.count_nonzero(is_kept)))
        languages, numbers = np.unique(examined.languages[is_kept], return_counts=True)
        decided.languages.update(dict(zip(languages.tolist(), numbers.tolist(), strict=True)))
        if decided.query_kept is not None:
            decided.query_kept += self._of_queries(examined, is_kept)
