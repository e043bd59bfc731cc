"""A mixture of real shards, from its config to the batches."""

import json
from dataclasses import replace

import numpy as np
import pytest

from diptych.config.schema import CacheConfig, DataConfig, ImageTowerConfig, SourceConfig
from diptych.data.decoder import Decoder
from diptych.data.loader import batches
from diptych.data.loader_processes import LoaderProcesses
from diptych.data.mixture import Mixture, open_mixture, refuse_unknown_fields
from diptych.data.order import SampleOrder
from diptych.data.shard_cache import ShardCache
from diptych.data.shard_index_file import ShardError
from diptych.data.shard_list import SHARD_ROW, ShardList
from diptych.data.shard_writer import ShardWriter
from diptych.data.shards import ShardIndex
from diptych.data.tokenizer import train_vocabulary
from diptych.errors import UserError
from diptych.training.step_report import epochs
from tests.data.test_loader import picture

BATCH = 10
SIZES = (17, 9, 3)
WORDS = ("plain", "alternative", "first", "second")
TOKENIZER = train_vocabulary([f"{word} {number}" for word in WORDS for number in range(9)], 600)


@pytest.fixture
def config(tmp_path):
    """Three sources with 5.5, 3 and 1.5 rows of each batch."""
    for source, size in enumerate(SIZES):
        (tmp_path / str(source)).mkdir()
        for shard, rows in enumerate(np.array_split(np.arange(size), 2)):
            with ShardWriter(tmp_path / str(source), shard) as writer:
                for row in rows.tolist():
                    facts = {"alt": f"alternative {source}", "more": [f"first {source}", " ", f"second {source}"]}
                    members = {"txt": f"plain {source}".encode(), "json": json.dumps(facts).encode()}
                    is_broken = source == 1 and row == 4
                    writer.add(f"{row:04d}", {"png": b"nothing" if is_broken else picture(row), **members})
    captions = {"txt": 0.25, "more": 0.5, "alt": 0.25}
    weights = (55, 30, 15)
    sources = [
        SourceConfig(shards=str(tmp_path / str(n)), weight=weight, captions=captions if n != 2 else None)
        for n, weight in enumerate(weights)
    ]
    return DataConfig(train=tuple(sources))


def test_labels_of_sources_are_short_and_differ():
    names = ["s3://bucket/web/", "/data/books/{00000..00099}.tar", ("a/cc", "b/cc"), "other/web"]
    index = ShardIndex(())
    mixture = Mixture(index, [SourceConfig(shards=name) for name in names], [0] * 4)
    assert mixture.labels == ["web_0", "books", "cc", "web_3"]


def load(config, *, rows=(0, BATCH), first=0, stop=40, workers=0):
    mixture = open_mixture(config)
    order = SampleOrder(
        mixture.index.counts, seed=3, global_batch_size=BATCH, shuffle_window=4, sources=mixture.weighted
    )
    return list(
        batches(
            mixture.index,
            order,
            Decoder(config, ImageTowerConfig(image_size=16), 3, mixture),
            TOKENIZER,
            context_length=12,
            rows=rows,
            first=first,
            stop=stop,
            processes=LoaderProcesses(workers),
        )
    )


def said(batch):
    return [TOKENIZER.decode(row[1 : n - 1].tolist()) for row, n in zip(batch.tokens, batch.lengths, strict=True)]


def content(batch):
    return batch.images.tolist(), said(batch), batch.samples.tolist()


def test_sources_with_weights_are_gone_through_at_different_rates(config):
    mixture = open_mixture(config)
    shares = np.array([mixture.count(batch.samples) for batch in load(config)]).sum(axis=0) / (40 * BATCH)
    assert mixture.epochs(1200) == pytest.approx(1200 * shares / mixture.sizes)
    least, most = min(mixture.epochs(1200)), max(mixture.epochs(1200))
    assert mixture.describe_epochs(1200) == f"{least:.1f} to {most:.1f} epochs of a source"
    assert epochs(mixture, 1200) == {
        f"epochs_of_{name}": number for name, number in zip(mixture.labels, mixture.epochs(1200), strict=True)
    }
    without = Mixture(mixture.index, [replace(source, weight=None) for source in mixture.configs], [2] * 3)
    assert epochs(without, 2 * without.index.total_samples) == {"epoch": 2}
    assert without.describe_epochs(2 * without.index.total_samples) == "2.0 epochs"


def test_sources_keep_their_proportions_and_small_ones_repeat(config):
    mixture = open_mixture(config)
    found = load(config)
    counts = np.array([mixture.count(batch.samples) for batch in found])
    assert (counts.sum(0) == [220, 120, 60]).all()
    assert set(counts[:, 0]) == {5, 6} and set(counts[:, 1]) == {3} and set(counts[:, 2]) == {1, 2}
    times = np.bincount(np.concatenate([batch.samples for batch in found]))
    assert set(times[:17]) <= {12, 13} and (times[26:] == 20).all()
    # A sample that cannot be used is replaced by one of its source, so the proportions stay.
    broken = 17 + 4
    assert {reject.sample for batch in found for reject in batch.rejects} == {broken} and times[broken] == 0


def test_any_ranks_workers_and_starts_give_the_same_batches(config):
    whole = [content(batch) for batch in load(config, stop=12)]
    assert [content(batch) for batch in load(config, stop=12, workers=2)] == whole
    assert [content(batch) for batch in load(config, first=7, stop=12)] == whole[7:]
    parts = [load(config, rows=rows, stop=12) for rows in ((0, 3), (3, 10))]
    assert [[*said(one), *said(other)] for one, other in zip(*parts, strict=True)] == [both[1] for both in whole]


def test_captions_come_from_the_fields_of_the_source_by_probability(config):
    mixture = open_mixture(config)
    words = {source: [] for source in range(3)}
    for batch in load(config):
        for caption, source in zip(said(batch), mixture.numbers_of(batch.samples).tolist(), strict=True):
            words[source].append(next(word for word in WORDS if word[:3] == caption.replace(" ", "")[:3]))
    assert set(words[2]) == {"plain"}
    for source in (0, 1):
        shares = {word: words[source].count(word) / len(words[source]) for word in WORDS}
        assert all(0.15 < share < 0.37 for share in shares.values()), shares  # 1/4 each: 120 and 220 draws


def test_a_shard_of_two_sources_and_a_weighted_source_without_samples_are_refused(config, tmp_path):
    twice = (config.train[0], SourceConfig(shards=config.train[0].shards, weight=1))
    with pytest.raises(ShardError, match=r"00000.tar' is given more than once; name every shard once"):
        open_mixture(DataConfig(train=twice))
    (tmp_path / "empty").mkdir()
    with ShardWriter(tmp_path / "empty", 0):
        pass
    empty = (config.train[0], SourceConfig(shards=str(tmp_path / "empty"), weight=1))
    with pytest.raises(ShardError, match=r"data.train\[1\]: the shards of .*empty contain no samples; leave it out"):
        open_mixture(DataConfig(train=empty))


def test_a_mixture_whose_config_forgets_a_weight_opens_so_that_the_config_can_be_refused(config):
    """Faults of the config are collected while the data is opened; opening must not fail by another error."""
    forgotten = (SourceConfig(shards=config.train[0].shards), *config.train[1:])
    assert open_mixture(DataConfig(train=forgotten)).weighted == []


def test_a_field_of_captions_that_no_sample_has_is_refused_with_those_they_have(config):
    refuse_unknown_fields(open_mixture(config))
    wrong = SourceConfig(shards=config.train[1].shards, weight=1, captions={"alt": 0.7, "atl": 0.3})
    expected = r"data.train\[1\].captions: none of 9 samples of .* has 'atl'; they have alt, more, txt"
    with pytest.raises(UserError, match=expected):
        refuse_unknown_fields(open_mixture(DataConfig(train=(config.train[0], wrong))))


def test_a_source_with_fewer_samples_than_its_rows_of_a_batch_is_doubtful(config):
    mixture = open_mixture(config)
    assert list(mixture.doubtful(config, 20)) == []
    (doubt,) = mixture.doubtful(config, 30)
    assert doubt.startswith(f"{config.train[2].shards} gives 4 rows of each batch and has 3 samples")


def test_a_cache_smaller_than_the_shards_of_a_batch_of_all_sources_is_doubtful(tmp_path):
    rows = np.zeros(400, SHARD_ROW)
    rows["samples"], rows["num_bytes"] = 1000, 10**8
    names = [f"https://store/{number // 100}/{number:05d}.tar" for number in range(len(rows))]
    sources = tuple(SourceConfig(shards=f"https://store/{number}", weight=1 + number) for number in range(4))
    mixture = Mixture(ShardIndex(ShardList(names, rows, ShardCache(tmp_path))), sources, [100] * 4)
    config = DataConfig(train=sources, streams=16, shuffle_window=1000)
    order = SampleOrder(
        mixture.index.counts, seed=0, global_batch_size=1000, shuffle_window=1000, streams=16, sources=mixture.weighted
    )
    of_a_batch = len(set(mixture.index.locate_many(order.rows(7).samples)[0].tolist()))
    assert 4 * 16 < of_a_batch <= 4 * 16 * 2
    too_small, enough = (CacheConfig(folder=str(tmp_path), bytes=number * 10**8) for number in (of_a_batch, 130))
    (doubt,) = mixture.doubtful(replace(config, cache=too_small), 1000)
    assert doubt.startswith("batches are read from 128 shards at a time, about 12.8 GB, and the cache may take")
    assert list(mixture.doubtful(replace(config, cache=enough), 1000)) == []


def test_sources_without_weights_are_the_same_data_as_a_list_of_locations(config):
    plain = open_mixture(DataConfig(train=tuple(source.shards for source in config.train)))
    sources = tuple(SourceConfig(shards=source.shards) for source in config.train)
    assert open_mixture(DataConfig(train=sources)).weighted == plain.weighted == []
    assert open_mixture(DataConfig(train=sources)).index.fingerprint == plain.fingerprint
    assert open_mixture(config).fingerprint != plain.fingerprint
    assert DataConfig(train=sources).mixing == () != config.mixing
