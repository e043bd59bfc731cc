"""Count tokens and n-grams in captions of the training data, once a run; the counts stay in its directory."""

from __future__ import annotations

import hashlib
import logging
from array import array
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diptych.config.schema import LossConfig, NgramsConfig, RunConfig
from diptych.data.decoder import Decoder, Picked
from diptych.data.mixture import Mixture
from diptych.data.shard_index_file import ShardError
from diptych.data.shards_ahead import each_ahead
from diptych.data.tokenizer import Tokenizer
from diptych.files import committed
from diptych.loss import WordLoss
from diptych.loss.visual_ngrams import VisualNgrams
from diptych.loss.words import BagOfWords
from diptych.tensor_files import read_tensors, save_tensors
from diptych.terminal import counted

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CaptionCounts:
    num_captions: int
    with_token: np.ndarray
    """i64[vocabulary]: how many of the captions contain each token."""
    ngrams: np.ndarray
    """i64[number 2]: the n-grams as `VisualNgrams` takes them; empty for other losses."""
    occurrences: np.ndarray
    """i64[vocabulary + number]: how often each token and each n-gram occurs; empty for other losses."""


def caption_counts(config: RunConfig, mixture: Mixture, tokenizer: Tokenizer, folder: Path) -> CaptionCounts:
    """The counts of a run; they are counted if the folder does not have those of these shards and this vocabulary.

    They depend on the data, the vocabulary and the config alone, so a run whose file was deleted goes on with the same.
    """
    ngrams = config.loss.ngrams if config.loss.name == "visual_ngrams" else None
    about = (mixture.fingerprint, tokenizer.fingerprint, config.loss.counted_captions, config.training.seed, ngrams)
    file = folder / f"caption_counts_{hashlib.sha256(repr(about).encode()).hexdigest()[:12]}.safetensors"
    if not file.exists():
        found = count(first_captions(config, mixture), tokenizer, ngrams)
        logger.info("counted the tokens of %s", counted(found.num_captions, "caption"))
        tensors = {name: torch.tensor(value) for name, value in vars(found).items()}
        with committed(file) as partial:
            save_tensors(tensors, partial)
    kept = {name: tensor.numpy() for name, tensor in read_tensors(file).items()}
    return CaptionCounts(int(kept.pop("num_captions")), **kept)


def count(captions: Iterable[str], tokenizer: Tokenizer, ngrams: NgramsConfig | None) -> CaptionCounts:
    """Count tokens, and n-grams if their settings are given."""
    vocab_size = tokenizer.vocab_size
    num_captions, with_token = 0, np.zeros(vocab_size, dtype=np.int64)
    all_tokens = array("q")
    for caption in captions:
        tokens = tokenizer.encode(caption)
        num_captions += 1
        with_token[list(set(tokens))] += 1
        if ngrams is not None:
            all_tokens.extend([*tokens, -1])
    none = np.empty(0, dtype=np.int64)
    if ngrams is None:
        return CaptionCounts(num_captions, with_token, none.reshape(0, 2), none)
    return CaptionCounts(num_captions, with_token, *count_ngrams(np.array(all_tokens), vocab_size, ngrams))


def count_ngrams(tokens: np.ndarray, vocab_size: int, config: NgramsConfig) -> tuple[np.ndarray, np.ndarray]:
    """The n-grams of two tokens and more that occur `min_count` times, and how often each token and n-gram does.

    tokens: i64, those of all captions, with -1 after each caption. An n-gram occurs at least as rarely as its
    beginning, so each length is counted among the places where a shorter n-gram begins.
    """
    occurrences = [np.bincount(tokens[tokens >= 0], minlength=vocab_size)]
    ngrams, num_outputs = [np.empty((0, 2), dtype=np.int64)], vocab_size
    begun = tokens  # the output of the n-gram that begins at each place, negative if there is none
    for length in range(2, config.longest + 1):
        following = tokens[length - 1 :]
        begun = begun[: len(following)]
        keys = np.where((begun >= 0) & (following >= 0), begun * vocab_size + following, -1)
        found, numbers = np.unique(keys[keys >= 0], return_counts=True)
        found, numbers = found[numbers >= config.min_count], numbers[numbers >= config.min_count]
        if not len(found):
            break
        places = np.searchsorted(found, keys).clip(max=len(found) - 1)
        begun = np.where(found[places] == keys, num_outputs + places, -1)
        ngrams.append(np.stack(np.divmod(found, vocab_size), axis=1))
        occurrences.append(numbers)
        num_outputs += len(found)
    return np.concatenate(ngrams), np.concatenate(occurrences)


def word_loss(config: LossConfig, counts: CaptionCounts) -> WordLoss:
    vocab_size = len(counts.with_token)
    if config.name == "bag_of_words":
        return BagOfWords(vocab_size)
    ngrams = config.ngrams
    return VisualNgrams(vocab_size, torch.from_numpy(counts.ngrams), ngrams.longest, ngrams.smoothing)


def initial_biases(config: LossConfig, counts: CaptionCounts) -> Tensor:
    """f32[outputs]: biases with which a layer whose weights are zero predicts what was counted.

    Without them the first thousands of steps would learn that most words are rare. What was not found counts as half.
    """
    if config.name == "visual_ngrams":
        return torch.from_numpy(np.log(np.maximum(counts.occurrences, 0.5))).float()
    found = np.clip(counts.with_token, 0.5, max(counts.num_captions, 1) - 0.5)
    return torch.from_numpy(np.log(found) - np.log(counts.num_captions - found)).float()


def first_captions(config: RunConfig, mixture: Mixture) -> Iterator[str]:
    """The captions of the first samples of each source, as the first epoch uses them; `loss.counted_captions` in all.

    A source has the share of them that it has of the samples. Damaged samples and those without a caption are left out.
    """
    decoder = Decoder(config.data, config.model.image, config.training.seed, mixture)
    share = min(1.0, config.loss.counted_captions / max(1, mixture.index.total_samples))
    starts = np.cumsum([0, *mixture.sizes]).tolist()
    for start, size in zip(starts, mixture.sizes.tolist(), strict=False):
        for number in each_ahead(mixture.index, range(start, start + round(size * share))):
            with suppress(ShardError):  # the run counts damaged samples
                sample = mixture.index.sample(*mixture.index.locate(number))
                members = mixture.index.read(sample, "txt", "json")
                if caption := decoder.caption(members, Picked(number, 0, 0)):
                    yield caption
