"""Everything except the table that decides what `build` writes."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property

import numpy as np
import xxhash

from diptych.errors import UserError
from diptych.terminal import counted
from diptych_shards.fetch.fetcher import FetchOptions
from diptych_shards.pictures.picture import PictureOptions
from diptych_shards.shard_build.shard_files import OutputOptions


class BuildError(UserError):
    """The command cannot be carried out; the message is one line for its user."""


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    pictures: PictureOptions = field(default_factory=PictureOptions)
    output: OutputOptions = field(default_factory=OutputOptions)
    fetch: FetchOptions = field(default_factory=FetchOptions)
    """How politely and patiently; may change between starts, since it decides no byte of a picture that answers."""
    blocked_sha256: frozenset[str] = frozenset()
    """Of downloaded bytes."""
    blocked_phash: tuple[int, ...] = ()
    """64-bit perceptual hashes; what lies within `phash_distance` bits of one is refused."""
    phash_distance: int = 4
    resolve: tuple[str, ...] = ()
    """`host:port:address`, asked before DNS, as curl's --resolve."""

    @property
    def deciding(self) -> dict[str, object]:
        """What must stay the same when a build goes on, as plain values."""
        pictures = {name: None if value == math.inf else value for name, value in asdict(self.pictures).items()}
        return {
            **pictures,
            **asdict(self.output),
            "fast_decode": False,  # an option once: builds that did not use it go on
            "blocked_sha256": _digest_of(sorted(self.blocked_sha256)),
            "blocked_phash": _digest_of(sorted(self.blocked_phash)),
            "phash_distance": self.phash_distance,
        }

    def blocks(self, perceptual_hash: int | None) -> bool:
        """Whether a picture of this hash is too like one on the block list; flat ones have no hash."""
        if perceptual_hash is None or not self.blocked_phash:
            return False
        distances = np.bitwise_count(self._blocked ^ np.uint64(perceptual_hash))
        return bool(distances.min() <= self.phash_distance)

    @cached_property
    def _blocked(self) -> np.ndarray:
        return np.array(self.blocked_phash, np.uint64)

    @cached_property
    def identity(self) -> str:
        """`deciding` as a line; asked for at each shard, and a block list may have millions of lines."""
        return json.dumps(self.deciding, sort_keys=True)


def _digest_of(lines: Sequence[object]) -> str | list[object]:
    """A short text in place of a list that may be long."""
    if not lines:
        return []
    digest = xxhash.xxh3_128_hexdigest(" ".join(map(str, lines)).encode())
    return f"{counted(len(lines), 'line')}, xxh3 {digest}"
