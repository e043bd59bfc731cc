from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from diptych.config.schema import NgramsConfig, RunConfig, SourceConfig
from diptych.data.mixture import Mixture, open_mixture
from diptych.data.shard_writer import ShardWriter
from diptych.data.tokenizer import train_vocabulary
from diptych.training import caption_counts as counting
from diptych.training.caption_counts import caption_counts, count, first_captions
from tests.training.tiny import tiny_config

CAPTIONS = ["a red cat", "a red dog", "a red cat on a red mat", "", "the red cat", "cat"]


def naive_ngrams(tokenizer, longest, min_count):
    found = Counter()
    for caption in CAPTIONS:
        tokens = tokenizer.encode(caption)
        for length in range(1, longest + 1):
            found.update(tuple(tokens[at : at + length]) for at in range(len(tokens) - length + 1))
    return {each: number for each, number in found.items() if len(each) == 1 or number >= min_count}


@pytest.mark.parametrize(("longest", "min_count"), [(1, 1), (2, 2), (5, 1), (5, 2), (5, 100)])
def test_ngrams_are_counted_within_captions(longest, min_count):
    tokenizer = train_vocabulary(CAPTIONS, 560)
    counts = count(CAPTIONS, tokenizer, NgramsConfig(longest=longest, min_count=min_count))
    written = [(token,) for token in range(tokenizer.vocab_size)]
    for beginning, token in counts.ngrams.tolist():
        written.append((*written[beginning], token))
    found = {each: number for each, number in zip(written, counts.occurrences.tolist(), strict=True) if number}
    assert found == naive_ngrams(tokenizer, longest, min_count)
    keys = counts.ngrams[:, 0] * tokenizer.vocab_size + counts.ngrams[:, 1]
    assert (np.diff(keys) > 0).all()


def test_a_token_counts_once_for_each_caption():
    tokenizer = train_vocabulary(CAPTIONS, 560)
    counts = count(CAPTIONS, tokenizer, None)
    expected = Counter(token for caption in CAPTIONS for token in set(tokenizer.encode(caption)))
    assert {token: number for token, number in enumerate(counts.with_token.tolist()) if number} == expected
    assert counts.num_captions == len(CAPTIONS)


def run_over(folder, captions) -> tuple[RunConfig, Mixture]:
    with ShardWriter(folder, 0) as writer:
        for row, caption in enumerate(captions):
            writer.add(f"{row:03d}", {"jpg": b"picture", **({"txt": caption.encode()} if caption else {})})
    config = tiny_config()
    config = replace(config, data=replace(config.data, train=(SourceConfig(shards=str(folder)),)))
    return config, open_mixture(config.data)


def test_the_first_captions_are_counted_once_a_run(tmp_path, monkeypatch):
    config, mixture = run_over(tmp_path / "shards", CAPTIONS)
    assert list(first_captions(config, mixture)) == [caption for caption in CAPTIONS if caption]
    config = replace(config, loss=replace(config.loss, counted_captions=2))
    assert list(first_captions(config, mixture)) == CAPTIONS[:2]
    tokenizer = train_vocabulary(CAPTIONS, 560)
    counts = caption_counts(config, mixture, tokenizer, tmp_path)
    assert counts.num_captions == 2
    monkeypatch.setattr(counting, "count", None)
    again = caption_counts(config, mixture, tokenizer, tmp_path)
    assert again.with_token.tolist() == counts.with_token.tolist()
    with pytest.raises(TypeError):  # other captions are counted anew
        caption_counts(replace(config, loss=replace(config.loss, counted_captions=3)), mixture, tokenizer, tmp_path)
