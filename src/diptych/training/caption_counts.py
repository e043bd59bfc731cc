"""Count in how many captions of the training data each token is, once a run; the counts stay in its directory."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from diptych.config.schema import RunConfig
from diptych.data.decoder import Decoder, Picked
from diptych.data.mixture import Mixture
from diptych.data.shard_index_file import ShardError
from diptych.data.tokenizer import Tokenizer
from diptych.files import committed
from diptych.tensor_files import read_tensors, save_tensors
from diptych.terminal import counted

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CaptionCounts:
    num_captions: int
    with_token: np.ndarray
    """i64[vocabulary]: how many of the captions contain each token."""


def caption_counts(config: RunConfig, mixture: Mixture, tokenizer: Tokenizer, folder: Path) -> CaptionCounts:
    """The counts of a run; they are counted if the folder does not have those of these shards and this vocabulary.

    They depend on the data, the vocabulary and the seed alone, so a run whose file was deleted goes on with the same.
    """
    about = (mixture.fingerprint, tokenizer.fingerprint, config.loss.counted_captions, config.training.seed)
    file = folder / f"caption_counts_{hashlib.sha256(repr(about).encode()).hexdigest()[:12]}.safetensors"
    if not file.exists():
        captions = first_captions(config, mixture)
        found = count(captions, tokenizer)
        logger.info("counted the tokens of %s", counted(found.num_captions, "caption"))
        tensors = {"captions": torch.tensor([found.num_captions]), "with_token": torch.from_numpy(found.with_token)}
        with committed(file) as partial:
            save_tensors(tensors, partial)
    kept = read_tensors(file)
    return CaptionCounts(int(kept["captions"]), kept["with_token"].numpy())


def count(captions: Iterator[str], tokenizer: Tokenizer) -> CaptionCounts:
    num_captions, with_token = 0, np.zeros(tokenizer.vocab_size, dtype=np.int64)
    for caption in captions:
        num_captions += 1
        with_token[list(set(tokenizer.encode(caption)))] += 1
    return CaptionCounts(num_captions, with_token)


def first_captions(config: RunConfig, mixture: Mixture) -> Iterator[str]:
    """The captions of the first samples of each source, as the first epoch uses them; `loss.counted_captions` in all.

    A source has the share of them that it has of the samples. Damaged samples and those without a caption are left out.
    """
    decoder = Decoder(config.data, config.model.image, config.training.seed, mixture)
    share = min(1.0, config.loss.counted_captions / max(1, mixture.index.total_samples))
    starts = np.cumsum([0, *mixture.sizes]).tolist()
    for start, size in zip(starts, mixture.sizes.tolist(), strict=False):
        for number in range(start, start + round(size * share)):
            with suppress(ShardError):  # the run counts damaged samples
                sample = mixture.index.sample(*mixture.index.locate(number))
                members = mixture.index.read(sample, "txt", "json")
                if caption := decoder.caption(members, Picked(number, 0, 0)):
                    yield caption
