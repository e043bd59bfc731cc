"""The options of `dedup`: what is a duplicate, and which one of several stays."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diptych.data.shards import ShardIndex
from diptych.errors import UserError
from diptych.terminal import shown
from diptych_shards.metadata import columns_of_shard
from diptych_shards.select.expression import parse
from diptych_shards.select.near_hashes import MAX_DISTANCE, USUAL_DISTANCE
from diptych_shards.select.select_folder import checked_name
from diptych_shards.select.verdicts import verdict_to_replace

DEFAULT_COSINE = 0.95


@dataclass(frozen=True, kw_only=True)
class DedupOptions:
    """What is a duplicate, and which one of several stays."""

    name: str = "dedup"
    distance: int = USUAL_DISTANCE
    """Bits of the perceptual hash."""
    exact_only: bool = False
    """Only equal pixels are duplicates."""
    against: Sequence[str] = ()
    embeddings: str | None = None
    against_embeddings: str | None = None
    embedding_column: str | None = None
    cosine: float | None = None
    """None: DEFAULT_COSINE."""
    approximate: bool = False
    prefer: str | None = None
    """A number for each sample; the highest stays."""

    def __post_init__(self) -> None:
        checked_name(self.name)
        if not 0 <= self.distance <= MAX_DISTANCE:
            raise UserError(f"a distance of {self.distance} bits; it must be 0 to {MAX_DISTANCE} of 64")
        if self.cosine is not None and not 0.5 <= self.cosine < 1:
            raise UserError(f"a cosine of {self.cosine}; it must be at least 0.5 and below 1")
        if self.against_embeddings and not self.against:
            raise UserError("--against-embeddings are of the pictures of --against; name these too")
        of_embeddings = {
            "--against-embeddings": self.against_embeddings,
            "--embedding-column": self.embedding_column,
            "--cosine": self.cosine,
            "--approximate": self.approximate,
        }
        for option, value in of_embeddings.items():
            if value and not self.embeddings:
                raise UserError(f"{option} does nothing without --embeddings PATH; give both, or leave it out")

    @property
    def min_cosine(self) -> float:
        return DEFAULT_COSINE if self.cosine is None else self.cosine

    def given(self) -> dict[str, Any]:
        """The options as the verdict records them, under their names on the command line."""
        options = asdict(self)
        if self.exact_only:
            del options["distance"]
        if self.embeddings:
            options["cosine"] = self.min_cosine
        return options


def check_not_weaker(shards: Path, options: DedupOptions) -> None:
    """Check that the new verdict is compared with all evaluation sets that the one on disk was compared with.

    Raises:
        UserError: it is not; the message names the missing option.
    """
    before = verdict_to_replace(shards, options.name, "dedup")
    if before is None:
        return
    earlier = before.facts["options"]
    now = {os.path.realpath(location) for location in options.against}
    lost = [("--against", each) for each in earlier.get("against", ()) if os.path.realpath(each) not in now]
    if earlier.get("against_embeddings") and not options.against_embeddings:
        lost.append(("--against-embeddings", earlier["against_embeddings"]))
    for option, value in lost:
        raise UserError(f"the verdict {options.name!r} on disk was made with {option} {shown(value)}: give it "
                          f"again, choose another --name, or delete {shown(before.path)}")  # fmt: skip


def preferences(index: ShardIndex, expression: str) -> np.ndarray:
    """The preference for each sample in the order of the shards, as f64; NaN where it is unknown.

    Raises:
        UserError: the expression does not give numbers for these samples.
        ShardError: a shard is damaged.
    """
    wanted = parse(expression)
    found = [np.zeros(0)]
    for number, shard in enumerate(index.shards):
        columns = columns_of_shard(index, number, wanted.columns)
        numbers = wanted.numbers({name: columns[name] for name in wanted.columns}, shard.samples)
        found.append(numbers.to_numpy(zero_copy_only=False))
    return np.concatenate(found)
