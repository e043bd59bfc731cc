"""How many rows of each domain were kept and refused, in bounded memory."""

from __future__ import annotations

import functools
import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import pyarrow

MAX_DOMAINS = 100_000
"""When twice as many are known, all but these are added up."""
NO_HOST = "(no host)"

_HOST = r"^[A-Za-z][A-Za-z0-9+.-]*:[/\\]{2}(?:[^/\\?#]*@)?(?P<host>\[[0-9A-Fa-f:.]*\]|[^/\\?#:\[\]]+)"
_SECOND_LEVEL = frozenset(
    ("ac", "co", "com", "edu", "go", "gob", "gov", "gouv", "ne", "net", "nom", "or", "org", "sch")
)
"""Names under which a country registers others, as in bbc.co.uk."""
_LONGEST = 253


@dataclass(frozen=True)
class Domain:
    name: str
    kept: int
    refused: int

    @property
    def rows(self) -> int:
        return self.kept + self.refused


class Domains:
    """Counts rows by domain."""

    def __init__(self) -> None:
        self._counts: dict[str, list[int]] = {}
        self._rare = [0, 0]
        self._num_rare = 0

    def add(self, urls: pyarrow.Array, kept: np.ndarray) -> None:
        import pyarrow
        import pyarrow.compute as compute

        hosts = compute.utf8_lower(compute.struct_field(compute.extract_regex(urls, _HOST), "host"))
        hosts = compute.fill_null(hosts, NO_HOST)
        for column, mask in enumerate((kept, ~kept)):
            counted = compute.value_counts(hosts.filter(pyarrow.array(mask)))
            for host, rows in zip(*(counted.field(name).to_pylist() for name in ("values", "counts")), strict=True):
                self._counts.setdefault(registrable(host), [0, 0])[column] += rows
        if len(self._counts) > 2 * MAX_DOMAINS:
            self._forget_rare()

    def most_frequent(self, number: int) -> list[Domain]:
        return self._first(number, lambda item: (-sum(item[1]), item[0]))

    def most_refused(self, number: int) -> list[Domain]:
        """The domains that lost the most rows, if they lost more than half."""
        return [each for each in self._first(number, _by_loss) if each.refused > each.kept]

    @property
    def num(self) -> tuple[int, bool]:
        """How many domains are known, and whether these are all: not if rare ones were added up."""
        return len(self._counts), self._num_rare == 0

    @property
    def rare(self) -> Domain | None:
        """The sum of the rare domains, if any were added up."""
        return Domain("rare ones", *self._rare) if self._num_rare else None

    def _first(self, number: int, order: Callable[[tuple[str, list[int]]], tuple[int, str]]) -> list[Domain]:
        items = heapq.nsmallest(number, self._counts.items(), key=order)
        return [Domain(name, kept, refused) for name, (kept, refused) in items]

    def _forget_rare(self) -> None:
        by_rows = sorted(self._counts.items(), key=lambda item: (-sum(item[1]), item[0]))
        for name, (kept, refused) in by_rows[MAX_DOMAINS:]:
            del self._counts[name]
            self._rare[0] += kept
            self._rare[1] += refused
            self._num_rare += 1


def _by_loss(item: tuple[str, list[int]]) -> tuple[int, str]:
    name, (kept, refused) = item
    return (-refused if refused > kept else 0), name


@functools.lru_cache(maxsize=1 << 16)
def registrable(host: str) -> str:
    """The domain of a host that someone registered, guessed without a list; an IP address stays as it is."""
    host = host.rstrip(".")
    labels = host.split(".")
    if not host or len(host) > _LONGEST:
        return NO_HOST
    if host.startswith("[") or labels[-1].isdecimal():
        return host
    return ".".join(labels[-_num_labels(labels) :])


def _num_labels(labels: Sequence[str]) -> int:
    return 3 if len(labels) > 2 and len(labels[-1]) == 2 and labels[-2] in _SECOND_LEVEL else 2
