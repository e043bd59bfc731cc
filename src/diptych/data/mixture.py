"""The sources of the training data: one index over the shards of all of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress

import numpy as np

from diptych.config.schema import DataConfig, SourceConfig
from diptych.data.captions import fields_with_text
from diptych.data.shard_cache import ShardCache
from diptych.data.shard_index_file import ShardError
from diptych.data.shard_list import ShardList
from diptych.data.shards import ShardIndex, open_index, refuse_twice
from diptych.errors import UserError
from diptych.terminal import counted, percent

FIELD_SAMPLES = 100
"""Samples of a source that are looked at for the fields of its captions."""


class Mixture:
    """Which samples of the index belong to which source; sources follow one another in it."""

    def __init__(self, index: ShardIndex, configs: Sequence[SourceConfig], num_shards: Sequence[int]):
        self.index = index
        self.configs = tuple(configs)
        self._num_shards = tuple(num_shards)
        shard_ends = np.cumsum([0, *index.counts])
        self._ends = shard_ends[np.cumsum(num_shards)]

    @property
    def names(self) -> list[str]:
        """The shards of each source, as the config names them."""
        each = [source.shards for source in self.configs]
        return [shards if isinstance(shards, str) else ",".join(shards) for shards in each]

    @property
    def labels(self) -> list[str]:
        """A short name of each source, for metrics: the folder of its shards, with a number if two are alike."""
        folders = [_last_folder(name) for name in self.names]
        return [one if folders.count(one) == 1 else f"{one}_{number}" for number, one in enumerate(folders)]

    @property
    def sizes(self) -> np.ndarray:
        """i64[sources]: the number of samples of each."""
        return np.diff(self._ends, prepend=0)

    @property
    def weighted(self) -> list[tuple[int, float]]:
        """The number of shards and the weight of each source, as `SampleOrder` takes them; empty if one has none."""
        weights = [source.weight for source in self.configs if source.weight is not None]
        return list(zip(self._num_shards, weights, strict=True)) if len(weights) == len(self.configs) else []

    @property
    def fingerprint(self) -> str:
        """Equal for equal shards in equal order, of equal sources."""
        if len(self.configs) == 1:
            return self.index.fingerprint
        return hashlib.sha256(f"{self.index.fingerprint} {self.sizes.tolist()}".encode()).hexdigest()

    def epochs(self, num_samples: int) -> list[float]:
        """How many times so many samples go through each source; one number for all if they have no weights."""
        if not self.weighted:
            return [num_samples / max(self.index.total_samples, 1)]
        total = sum(weight for _, weight in self.weighted)
        each = zip(self.weighted, self.sizes.tolist(), strict=True)
        return [num_samples * weight / total / size for (_, weight), size in each]

    def describe_epochs(self, num_samples: int) -> str:
        """`2.0 epochs`, or with weights the fewest and the most: `0.5 to 12.0 epochs of a source`."""
        epochs = sorted(self.epochs(num_samples))
        if not self.weighted:
            return f"{epochs[0]:.1f} epochs"
        return f"{epochs[0]:.1f} to {epochs[-1]:.1f} epochs of a source"

    def describe(self, num_samples: int) -> list[str]:
        """A line for each source with a weight: its share, and its epochs in a run of so many samples."""
        total = sum(weight for _, weight in self.weighted)
        each = zip(self.names, self.sizes, self.weighted, self.epochs(num_samples), strict=False)
        return [
            f"{name}: {percent(weight, total)} of each batch, {epochs:.1f} epochs of {counted(int(size), 'sample')}"
            for name, size, (_, weight), epochs in each
        ]

    def doubtful(self, config: DataConfig, batch_size: int, batch_share: float = 1.0) -> Iterator[str]:
        """Yield a line for each setting that works but is rarely meant.

        batch_share: the share of each batch that this machine loads.
        """
        total = sum(weight for _, weight in self.weighted)
        for name, size, (_, weight) in zip(self.names, self.sizes.tolist(), self.weighted, strict=False):
            rows = batch_size * weight / total
            if rows > size:
                yield (
                    f"{name} gives {rows:,.0f} rows of each batch and has {counted(size, 'sample')}, so a batch "
                    f"contains some of them several times, each as its own negative; give it a smaller weight"
                )
        if self.index.shards.is_elsewhere:
            at_once, needed = self._read_at_once(config, batch_size, batch_share)
            room = ShardCache.of(config.cache).room.limit()
            if needed > room:
                yield (
                    f"batches are read from {at_once:,} shards at a time, about {needed / 1e9:,.3g} GB, and the cache "
                    f"may take {room / 1e9:,.3g} GB, so shards will be fetched again and again; "
                    + ("leave data.groups out" if config.groups.file else "set data.streams to a smaller number")
                    + ", or data.cache.bytes to a larger one"
                )

    def _read_at_once(self, config: DataConfig, batch_size: int, batch_share: float) -> tuple[int, int]:
        """About how many shards this machine reads at a time, and their bytes."""
        if config.groups.file is not None:
            return len(self.index.shards), int(self.index.shards.num_bytes.sum())
        weights = np.array([weight for _, weight in self.weighted] or [1.0])
        num_shards = [number for number, _ in self.weighted] or [len(self.index.shards)]
        ends, at_once, needed = np.cumsum(num_shards), 0.0, 0.0
        for end, number, share in zip(ends, num_shards, weights / weights.sum(), strict=True):
            streams = min(config.streams or batch_size, batch_size * share) * batch_share
            samples = self.index.counts[end - number : end].mean()
            # A window may begin anywhere in a shard, so it touches one shard more than it is long.
            shards = min(number, np.ceil(streams) * (1 + config.shuffle_window / max(samples, 1)))
            at_once += shards
            needed += shards * self.index.shards.num_bytes[end - number : end].mean()
        return round(at_once), round(needed)

    def count(self, samples: np.ndarray) -> np.ndarray:
        """i64[sources]: how many of these samples, such as those of a batch, each source has given."""
        return np.bincount(self.numbers_of(samples), minlength=len(self.configs))

    def numbers_of(self, samples: np.ndarray) -> np.ndarray:
        """i64: the number of the source of each sample."""
        return np.searchsorted(self._ends, samples, side="right")

    def captions_of(self, sample: int) -> Mapping[str, float] | None:
        """Field → probability of the captions of the sample's source."""
        return self.configs[int(self.numbers_of(np.array(sample)))].captions


def open_mixture(config: DataConfig, *, index_missing: bool = True) -> Mixture:
    """Open the shards of all sources as one index.

    Raises:
        ShardError: as `open_index` does; a shard belongs to two sources, or a source with a weight has no samples.
    """
    cache = ShardCache.of(config.cache)
    each = [open_index(source.shards, cache, index_missing=index_missing) for source in config.sources]
    if len(each) == 1:
        return Mixture(each[0], config.sources, [len(each[0].shards)])
    index = ShardIndex(ShardList.joined([one.shards for one in each], cache))
    refuse_twice(index.shards.paths)
    for number, (source, one) in enumerate(zip(config.sources, each, strict=True)):
        if source.weight is not None and not one.total_samples:
            raise ShardError(f"data.train[{number}]: the shards of {source.shards} contain no samples; leave it out")
    return Mixture(index, config.sources, [len(one.shards) for one in each])


def refuse_unknown_fields(mixture: Mixture) -> None:
    """Look for the fields of captions in some samples of each source on this machine.

    Raises:
        UserError: none of them has a field.
    """
    ends = np.cumsum(mixture.sizes)
    for number, (source, size, end) in enumerate(zip(mixture.configs, mixture.sizes, ends, strict=True)):
        looked_at = np.unique(np.linspace(end - size, end - 1, min(FIELD_SAMPLES, size), dtype=np.int64))
        if source.captions is None or mixture.index.shards.is_elsewhere:
            continue
        found: set[str] = set()
        for sample in looked_at.tolist():
            with suppress(ShardError):  # damaged samples are counted by the run
                shard, row = mixture.index.locate(sample)
                members = mixture.index.read(mixture.index.sample(shard, row), "txt", "json")
                found.update(fields_with_text(members))
        if found and (missing := sorted(set(source.captions) - found)):
            raise UserError(
                f"data.train[{number}].captions: none of {counted(len(looked_at), 'sample')} of "
                f"{mixture.names[number]} has {' or '.join(map(repr, missing))}; they have {', '.join(sorted(found))}"
            )


def _last_folder(location: str) -> str:
    parts = location.split(",")[0].split("/")
    folders = [part for part in parts if part and "{" not in part and not part.endswith(".tar")]
    return folders[-1] if folders else "shards"
