"""Which files are in the shards many times, byte for byte, counted in bounded memory."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

from diptych.data.shard_index_file import PICTURE_SUFFIXES
from diptych.data.shards import ShardIndex

MAX_FILES = 100_000
"""When twice as many are known, those seen least are forgotten."""


@dataclass
class Repeated:
    """A picture file, by the first sample that has it."""

    shard: int
    sample: int
    times: int = 1


class RepeatedFiles:
    """Counts picture files by their hash."""

    def __init__(self) -> None:
        self._seen: dict[int, Repeated] = {}

    def add(self, shard: int, index: ShardIndex) -> None:
        """shard: its number in the report. index: of that shard alone."""
        for number, sample in enumerate(index.samples()):
            for member in sample.members:
                if member.suffix in PICTURE_SUFFIXES:
                    known = self._seen.setdefault(member.xxh3, Repeated(shard, number, 0))
                    known.times += 1
        if len(self._seen) > 2 * MAX_FILES:
            kept = heapq.nlargest(MAX_FILES, self._seen.items(), key=lambda item: item[1].times)
            self._seen = dict(kept)

    def most_frequent(self, number: int) -> list[Repeated]:
        """Those that are there more than once, most often first."""
        repeated = (each for each in self._seen.values() if each.times > 1)
        return heapq.nsmallest(number, repeated, key=lambda each: (-each.times, each.shard, each.sample))
