"""Count what is in shards, over samples drawn evenly and over the index."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xxhash

from diptych.data.shards import ShardIndex
from diptych.inspection.samples import SeenSample
from diptych.pages.histograms import MOST_DOUBLINGS, RATIO_STEPS, Tally

LONGEST_SIDE = 1 << 15
LONGEST_CAPTION = 1 << 12
LARGEST_PICTURE_KB = 1 << 14
WARM_UP = 32
"""The first samples fill caches, so they are not timed if there are ten times as many."""
MOST_REPEATED = 3
_HASH_OF_NOTHING = np.uint64(xxhash.xxh3_64_intdigest(b""))
QUANTILES = {"p5": 0.05, "p50": 0.5, "p95": 0.95}


@dataclass
class Statistics:
    """What was counted over the samples that were drawn from shards."""

    image_size: int
    context_length: int
    num_shards: int
    num_shards_drawn: int
    num_samples: int
    num_bytes: int
    num_warm_up: int
    num_drawn: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    shorter_side: Tally = field(default_factory=lambda: Tally(LONGEST_SIDE))
    longer_side: Tally = field(default_factory=lambda: Tally(LONGEST_SIDE))
    ratio: Tally = field(default_factory=lambda: Tally(2 * MOST_DOUBLINGS * RATIO_STEPS))
    """log2 of width to height, in steps, from -MOST_DOUBLINGS."""
    picture_kb: Tally = field(default_factory=lambda: Tally(LARGEST_PICTURE_KB))
    tokens: Tally = field(default_factory=lambda: Tally(LONGEST_CAPTION))
    """Lengths of whole captions with start and end."""
    fields: Counter[str] = field(default_factory=Counter)
    """Where a caption can come from: `txt`, or a key of the `.json` → samples that have text there."""
    captions: Counter[str] = field(default_factory=Counter)
    num_compared: int = 0
    num_repeated: int = 0
    """Captions that were compared, empty ones left out, and those of them that occur more than once."""
    num_timed: int = 0
    seconds: Counter[str] = field(default_factory=Counter)
    """Stage → processor time of the timed samples."""

    def add(self, seen: SeenSample) -> None:
        """Count one sample."""
        self.num_drawn += 1
        if seen.picture is not None and seen.format is not None and seen.size is not None:
            self.formats[seen.format] += 1
            width, height = seen.size
            for tally, value in (
                (self.shorter_side, min(seen.size)),
                (self.longer_side, max(seen.size)),
                (self.ratio, round((np.log2(width / height) + MOST_DOUBLINGS) * RATIO_STEPS)),
                (self.picture_kb, round(len(seen.picture) / 1000)),
            ):
                tally.add(np.array([value]))
        self.fields.update(seen.fields)
        if seen.caption:
            self.captions[seen.caption] += 1
        if seen.row.reason is not None:
            self.rejected[seen.row.reason] += 1
            return
        self.tokens.add(np.array([len(seen.tokens) + 2]))
        if self.num_drawn > self.num_warm_up:
            self.num_timed += 1
            self.seconds.update(seen.seconds)

    def compare_captions(self, index: ShardIndex, samples: Sequence[int]) -> None:
        """Count captions that occur more than once: by their hashes in all shards that the samples are from.

        Captions without a file of their own are compared among the drawn samples alone.
        """
        shards = np.unique(index.locate_many(np.asarray(samples))[0]).tolist()
        hashes = np.concatenate([index.member_hashes(shard, ("txt",)) for shard in shards])
        hashes = hashes[hashes != _HASH_OF_NOTHING]
        times = np.unique(hashes, return_counts=True)[1] if len(hashes) else np.array([*self.captions.values()])
        self.num_compared, self.num_repeated = int(times.sum()), int(times[times > 1].sum())

    @property
    def num_enlarged(self) -> int:
        """Pictures that the model sees larger than they are stored."""
        return int(self.shorter_side.counts[: self.image_size].sum())

    @property
    def num_cut(self) -> int:
        """Captions of which training does not see the end."""
        return int(self.tokens.counts[self.context_length + 1 :].sum())

    @property
    def mean_tokens(self) -> float:
        """Tokens of a caption that training computes, on average, with start and end."""
        lengths = np.minimum(np.arange(len(self.tokens.counts)), self.context_length)
        return float((self.tokens.counts * lengths).sum() / max(self.tokens.total, 1))

    @property
    def samples_per_core_second(self) -> float | None:
        """The speed of one core; None if every sample was rejected."""
        seconds = sum(self.seconds.values())
        return self.num_timed / seconds if seconds else None

    @property
    def most_repeated(self) -> list[tuple[str, int]]:
        """The most frequent captions among the drawn samples, and how many of those have them."""
        return [(text, times) for text, times in self.captions.most_common(MOST_REPEATED) if times > 1]

    def to_dict(self) -> dict[str, Any]:
        """All numbers by name, with the counts that they were computed from."""
        num_rejected = sum(self.rejected.values())
        return {
            "shards": self.num_shards,
            "samples": self.num_samples,
            "bytes": self.num_bytes,
            "bytes_per_sample": round(self.num_bytes / self.num_samples, 1),
            "drawn": {"samples": self.num_drawn, "shards": self.num_shards_drawn},
            "rejected": {
                "samples": num_rejected,
                "share": num_rejected / self.num_drawn,
                "reasons": dict(self.rejected.most_common()),
            },
            "pictures": {
                "counted": self.shorter_side.total,
                "formats": dict(self.formats.most_common()),
                "shorter_side": quantiles(self.shorter_side),
                "longer_side": quantiles(self.longer_side),
                "width_to_height": {name: width_to_height(step) for name, step in quantiles(self.ratio).items()},
                "kilobytes": quantiles(self.picture_kb),
                "image_size": self.image_size,
                "enlarged": self.num_enlarged,
            },
            "captions": {
                "counted": self.tokens.total,
                "fields": {name: times / self.num_drawn for name, times in self.fields.most_common()},
                "tokens": {**quantiles(self.tokens), "mean_after_cut": round(self.mean_tokens, 2)},
                "context_length": self.context_length,
                "cut": self.num_cut,
                "cut_share": self.num_cut / max(self.tokens.total, 1),
                "compared": self.num_compared,
                "repeated": self.num_repeated,
                "repeated_share": self.num_repeated / max(self.num_compared, 1),
                "most_repeated": [{"caption": text, "times": times} for text, times in self.most_repeated],
            },
            "decoding": {
                "timed": self.num_timed,
                "samples_per_core_second": self.samples_per_core_second,
                "microseconds": {
                    stage: round(1e6 * seconds / self.num_timed, 1) for stage, seconds in self.seconds.items()
                },
            },
        }


def start_statistics(index: ShardIndex, samples: Sequence[int], *, image_size: int, context_length: int) -> Statistics:
    """Statistics without any sample yet, about an index of which these samples will be seen."""
    return Statistics(
        image_size,
        context_length,
        num_shards=len(index.shards),
        num_shards_drawn=len(np.unique(index.locate_many(np.asarray(samples))[0])),
        num_samples=len(index),
        num_bytes=int(index.shards.num_bytes.sum()),
        num_warm_up=WARM_UP if len(samples) >= 10 * WARM_UP else 0,
    )


def quantiles(tally: Tally) -> dict[str, int]:
    """The numbers that 5, 50 and 95 % do not exceed; empty for an empty tally."""
    return {name: tally.quantile(share) for name, share in QUANTILES.items()} if tally.total else {}


def width_to_height(step: int) -> float:
    """The ratio that a step of `Statistics.ratio` stands for."""
    return round(float(2 ** (step / RATIO_STEPS - MOST_DOUBLINGS)), 2)
