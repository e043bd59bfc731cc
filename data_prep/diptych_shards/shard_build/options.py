"""The options of `build`, and which of them must stay the same when a build resumes."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property

import xxhash

from diptych.terminal import counted
from diptych_shards.fetch.fetcher import FetchOptions
from diptych_shards.pictures.picture import PictureOptions
from diptych_shards.shard_build.shard_files import OutputOptions

_FORMER_OPTIONS: dict[str, object] = {
    "blocked_phash": [],
    "fast_decode": False,
    "hash_perceptually": False,
    "keep_exif": False,
    "phash_distance": 4,
    "subsampling": "420",
}
"""Options of earlier versions with their usual values, as those recorded them: their builds can still resume."""


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    pictures: PictureOptions = field(default_factory=PictureOptions)
    output: OutputOptions = field(default_factory=OutputOptions)
    spread_rows: bool = False
    """Spread neighbouring rows of the table over the shards by a hash; otherwise rows have the table's order."""
    fetch: FetchOptions = field(default_factory=FetchOptions)
    """How politely and patiently to fetch. It may change between starts: it changes no byte of a fetched picture."""
    blocked_sha256: frozenset[str] = frozenset()
    """Digests of files to refuse."""
    resolve: tuple[str, ...] = ()
    """`host:port:address` entries that are looked up before DNS, as with curl's --resolve."""

    @property
    def deciding(self) -> dict[str, object]:
        """The options that must stay the same when a build resumes, as plain values."""
        pictures = {name: None if value == math.inf else value for name, value in asdict(self.pictures).items()}
        # Earlier versions had the table's order and recorded none: their builds go on in it.
        order = {"order": "hash"} if self.spread_rows else {}
        return {
            **pictures,
            **asdict(self.output),
            **order,
            "blocked_sha256": _digest_of(sorted(self.blocked_sha256)),
            **_FORMER_OPTIONS,
        }

    @cached_property
    def identity(self) -> str:
        """`deciding` as one line. Cached: each shard needs it, and a block list may have millions of lines."""
        return json.dumps(self.deciding, sort_keys=True)


def _digest_of(lines: Sequence[object]) -> str | list[object]:
    """A short text that identifies a long list."""
    if not lines:
        return []
    digest = xxhash.xxh3_128_hexdigest(" ".join(map(str, lines)).encode())
    return f"{counted(len(lines), 'line')}, xxh3 {digest}"
