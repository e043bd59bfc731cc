"""Draw samples evenly from shards, and decode them as training does, with the time that each stage takes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from diptych.config.schema import RunConfig
from diptych.data.captions import caption_of, fields_with_text
from diptych.data.decoder import Decoder, Picked, Row
from diptych.data.draws import Draws, hash_of
from diptych.data.jpeg_segments import JpegStructureError, read_header
from diptych.data.loader import read_sample
from diptych.data.mixture import Mixture
from diptych.data.picture_safety import PictureError, PictureFile
from diptych.data.shard_index_file import PICTURE_SUFFIXES
from diptych.data.shards import ShardIndex
from diptych.data.shards_ahead import each_ahead
from diptych.data.tokenizer import Tokenizer

MOST_SHARDS = 64
"""Samples are drawn from at most this many shards, so that few index files are read."""
MOST_REMOTE_SHARDS = 8
"""Of shards at an address fewer, since each is fetched whole."""
STAGES = ("read", "decode", "tokenize")


@dataclass(frozen=True)
class SeenSample:
    """A sample as it is stored, and as the first epoch of training sees it."""

    row: Row
    """Its pixels after crop and augmentation and its caption, or the reason for which it is rejected."""
    caption: str
    """As stored; the first one if there are several."""
    fields: tuple[str, ...]
    """Where the sample has text: `txt`, and keys of its `.json`."""
    tokens: tuple[int, ...]
    """Of the whole caption that training uses, without start and end."""
    picture: bytes | None
    """The picture's file; None if there is none or it cannot be read."""
    format: str | None
    """JPEG, progressive JPEG, PNG …; None if the header cannot be read."""
    size: tuple[int, int] | None
    """Upright width and height in pixels."""
    member_bytes: Mapping[str, int]
    """Suffix of each of its files → size."""
    seconds: Mapping[str, float]
    """Stage → processor time."""


def draw_samples(index: ShardIndex, number: int, seed: int, sources: Sequence[tuple[int, float]] = ()) -> list[int]:
    """Draw up to `number` samples of an index, one at random from each of as many equally long stretches.

    If there are more shards than MOST_SHARDS, the stretches cover that many of them, drawn in the same way.

    sources: number of shards and weight of each source, if training draws them by weight; then so are these, as far as
        a source has samples.
    """
    sources = sources or [(len(index.shards), 1.0)]
    total = sum(weight for _, weight in sources)
    most = MOST_REMOTE_SHARDS if index.shards.is_elsewhere else MOST_SHARDS
    samples: list[int] = []
    first = 0
    for num_shards, weight in sources:
        shards = range(first, first + num_shards)
        of_source, shards_of_source = (max(1, round(all_of_them * weight / total)) for all_of_them in (number, most))
        samples += _drawn_evenly(index, shards, of_source, shards_of_source, seed)
        first += num_shards
    return samples


def _drawn_evenly(index: ShardIndex, among: range, number: int, most: int, seed: int) -> list[int]:
    chosen = among.start + np.array(one_of_each_stretch(len(among), min(most, len(among)), hash_of(0, seed, 5)))
    ends = np.cumsum(index.counts[chosen])
    places = np.array(one_of_each_stretch(int(ends[-1]), min(number, int(ends[-1])), hash_of(1, seed, 5)), np.int64)
    turns = np.searchsorted(ends, places, side="right")
    shards = chosen[turns]
    firsts = np.cumsum(index.counts) - index.counts
    samples: list[int] = (firsts[shards] + places - (ends[turns] - index.counts[shards])).tolist()
    return samples


def one_of_each_stretch(total: int, number: int, key: int) -> list[int]:
    """A random number from each of so many equally long stretches of the numbers below `total`."""
    draws = Draws(key)
    edges = [stretch * total // max(number, 1) for stretch in range(number + 1)]
    return [low + draws.below(high - low) for low, high in zip(edges, edges[1:], strict=False)]


def see_samples(mixture: Mixture, samples: list[int], config: RunConfig, tokenizer: Tokenizer) -> Iterator[SeenSample]:
    """Read and decode the samples one after another in this thread, through the loader's own stages."""
    torch.set_num_threads(1)
    decode = Decoder(config.data, config.model.image, config.training.seed, mixture)
    for sample in each_ahead(mixture.index, samples):
        began = time.thread_time()
        members = read_sample(mixture.index, Picked(sample, epoch=0, batch_number=0))
        was_read = time.thread_time()
        row = decode(members)
        decoded = time.thread_time()
        tokens = tokenizer.encode(row.caption)
        tokenized = time.thread_time()
        files = {suffix: data for suffix, data in members.items() if isinstance(data, bytes)}
        suffix = next((suffix for suffix in PICTURE_SUFFIXES if suffix in files), None)
        picture = None if suffix is None else files[suffix]
        yield SeenSample(
            row,
            row.caption or caption_of(files),
            tuple(fields_with_text(files)),
            tuple(tokens),
            picture,
            *_header(picture),
            {suffix: len(data) for suffix, data in files.items()},
            dict(zip(STAGES, (was_read - began, decoded - was_read, tokenized - decoded), strict=True)),
        )


def _header(picture: bytes | None) -> tuple[str | None, tuple[int, int] | None]:
    """Format, and upright width and height; None for each if the header cannot be read."""
    if picture is None:
        return None, None
    try:
        file = PictureFile(picture)
        is_progressive = file.format == "JPEG" and read_header(picture).has_many_scans
    except (PictureError, JpegStructureError):
        return None, None
    return f"progressive {file.format}" if is_progressive else file.format, file.upright_size
