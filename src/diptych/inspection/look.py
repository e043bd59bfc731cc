"""Look at shards once: draw samples, decode them, count them, and keep some to be shown."""

from __future__ import annotations

from dataclasses import dataclass

from diptych.config.schema import RunConfig
from diptych.data.draws import hash_of
from diptych.data.mixture import open_mixture
from diptych.data.shard_index_file import Shard
from diptych.data.tokenizer import Tokenizer, load_tokenizer
from diptych.errors import UserError
from diptych.inspection.samples import SeenSample, draw_samples, one_of_each_stretch, see_samples
from diptych.inspection.statistics import Statistics, start_statistics

MOST_REJECTED = 24


@dataclass(frozen=True)
class Look:
    """What was found in shards."""

    title: str
    """The name of the folder of the first shard."""
    tokenizer: Tokenizer
    statistics: Statistics
    shown: list[SeenSample]
    """Some of the samples that training uses, evenly among those drawn."""
    rejected: list[SeenSample]
    """The first samples that training rejects."""


def look(config: RunConfig, *, num_samples: int, num_shown: int = 0) -> Look:
    """Draw samples of the config's shards and decode them as training would.

    Raises:
        UserError: there are no samples, or no vocabulary.
    """
    tokenizer = load_tokenizer(config.tokenizer.vocabulary)
    mixture = open_mixture(config.data)
    index = mixture.index
    if not len(index):
        raise UserError(f"{config.data.train}: the shards contain no samples; name shards that do")
    samples = draw_samples(index, max(num_samples, num_shown), config.training.seed, mixture.weighted)
    statistics = start_statistics(
        index, samples, image_size=config.model.image.image_size, context_length=config.model.text.context_length
    )
    for source in mixture.configs:
        statistics.fields.update(dict.fromkeys(source.captions or (), 0))  # so that those that no sample has are shown
    places = one_of_each_stretch(len(samples), min(num_shown, len(samples)), hash_of(2, config.training.seed, 5))
    found = Look(_folder_of(index.shards[0]), tokenizer, statistics, [], [])
    for number, seen in enumerate(see_samples(mixture, samples, config, tokenizer)):
        statistics.add(seen)
        if seen.row.reason is not None:
            found.rejected.extend([seen] * (len(found.rejected) < MOST_REJECTED))
        elif len(found.shown) < len(places) and number >= places[len(found.shown)]:
            found.shown.append(seen)
    statistics.compare_captions(index, samples)
    return found


def _folder_of(shard: Shard) -> str:
    location = shard.location if shard.origin is not None else str(shard.path.resolve())
    return location.rpartition("/")[0].rpartition("/")[2]
