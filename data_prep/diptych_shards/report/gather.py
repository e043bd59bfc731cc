"""Count all that a report shows, in one pass over the rows."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from diptych.data.shards import open_index
from diptych.pages.histograms import MOST_DOUBLINGS, RATIO_STEPS, Tally
from diptych_shards.report.hosts import Domains
from diptych_shards.report.rows import ResultsReader, Rows
from diptych_shards.report.tally import LONGEST_CAPTION, RepeatedFiles, Smallest, add_lengths, shuffled_places

if TYPE_CHECKING:
    import pyarrow

LONGEST_SIDE = 1 << 15
EXAMPLES_PER_REASON = 6
ODD_PICTURES = 6
"""How many pictures of each kind are shown: smallest, longest, shortest and longest captions."""
_LONGEST_NAME = 2_000


@dataclass(frozen=True)
class Example:
    """A row to be shown."""

    shard: int
    sample: int
    """-1 for what was refused."""
    name: str
    caption: str | None
    message: str
    width: int
    height: int
    """Original size, upright."""


@dataclass
class Gathered:
    """The counts and examples of the rows of an output."""

    source: ResultsReader
    kept: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    has_captions: bool = False
    has_origins: bool = False
    """Whether the origin of any row is known."""
    domains: Domains = field(default_factory=Domains)
    shorter_side: Tally = field(default_factory=lambda: Tally(LONGEST_SIDE))
    stored_side: Tally = field(default_factory=lambda: Tally(LONGEST_SIDE))
    ratio: Tally = field(default_factory=lambda: Tally(2 * MOST_DOUBLINGS * RATIO_STEPS))
    """log2 of width to height, in steps, from -MOST_DOUBLINGS."""
    characters: Tally = field(default_factory=lambda: Tally(LONGEST_CAPTION))
    words: Tally = field(default_factory=lambda: Tally(LONGEST_CAPTION))
    examples_of_refused: dict[str, Smallest[Example]] = field(default_factory=dict)
    grids: dict[str, Smallest[Example]] = field(default_factory=dict)
    """Kept pictures, by what they are examples of."""
    repeated: RepeatedFiles = field(default_factory=RepeatedFiles)

    @property
    def rows(self) -> int:
        return self.kept + self.refused.total()


def gather(source: ResultsReader, *, pictures: int, seed: int) -> Gathered:
    """Count the rows of all whole shards; the memory this takes does not depend on their number.

    pictures: how many to choose at random. Which ones depends on the seed and the rows, on nothing else.
    """
    found = Gathered(source)
    found.grids["random"] = Smallest(pictures)
    for name in ("smallest", "longest", "short_caption", "long_caption"):
        found.grids[name] = Smallest(ODD_PICTURES)
    last_shard = -1
    for rows in source.rows():
        if rows.shard > last_shard:
            last_shard = rows.shard
            found.repeated.add(rows.shard, open_index(source.tar(rows.shard)))
        places = shuffled_places(seed, rows.shard, rows.numbers)
        kept = rows.samples >= 0
        found.kept += int(kept.sum())
        found.refused += Counter(rows.reasons[~kept].tolist())
        found.has_origins = found.has_origins or any(rows.names.to_pylist())
        if source.has_urls:
            found.domains.add(rows.names, kept)
        _sample_refused(found, rows, places)
        _measure_kept(found, rows, places)
    return found


def _sample_refused(found: Gathered, rows: Rows, places: np.ndarray) -> None:
    refused = np.flatnonzero(rows.samples < 0)
    reasons = rows.reasons[refused]
    for reason in sorted(set(reasons.tolist())):
        chosen = refused[reasons == reason]
        examples = found.examples_of_refused.setdefault(reason, Smallest(EXAMPLES_PER_REASON))
        _offer(examples, rows, chosen, np.zeros(len(chosen)), places)


def _measure_kept(found: Gathered, rows: Rows, places: np.ndarray) -> None:
    kept = np.flatnonzero(rows.samples >= 0)
    _offer(found.grids["random"], rows, kept, np.zeros(len(kept)), places)
    sizes = {name: values[kept] for name, values in rows.sizes.items()}
    known = (sizes["original_width"] > 0) & (sizes["original_height"] > 0)
    width, height = sizes["original_width"][known], sizes["original_height"][known]
    shorter = np.minimum(width, height)
    doublings = np.log2(width / height)
    found.shorter_side.add(shorter)
    found.stored_side.add(np.minimum(sizes["width"], sizes["height"])[known])
    found.ratio.add(np.rint((doublings + MOST_DOUBLINGS) * RATIO_STEPS).astype(np.int64))
    _offer(found.grids["smallest"], rows, kept[known], shorter, places)
    _offer(found.grids["longest"], rows, kept[known], -np.abs(doublings), places)
    if rows.captions is not None and len(kept):
        found.has_captions = True
        _measure_captions(found, rows, rows.captions.take(kept), kept, places)


def _measure_captions(
    found: Gathered, rows: Rows, captions: pyarrow.Array, kept: np.ndarray, places: np.ndarray
) -> None:
    """captions: of the kept rows."""
    characters = add_lengths(captions, found.characters, found.words)
    _offer(found.grids["short_caption"], rows, kept, characters, places)
    _offer(found.grids["long_caption"], rows, kept, -characters, places)


def _offer(examples: Smallest[Example], rows: Rows, chosen: np.ndarray, values: np.ndarray, places: np.ndarray) -> None:
    """values: for each of the chosen rows; the smallest are kept."""

    def example(position: int) -> Example:
        row = int(chosen[position])
        return Example(
            shard=rows.shard,
            sample=int(rows.samples[row]),
            name=rows.names[row].as_py()[:_LONGEST_NAME],
            caption=None if rows.captions is None else rows.captions[row].as_py()[:_LONGEST_NAME],
            message=rows.messages[row].as_py()[:_LONGEST_NAME],
            width=int(rows.sizes["original_width"][row]),
            height=int(rows.sizes["original_height"][row]),
        )

    examples.offer(values, places[chosen], example)
