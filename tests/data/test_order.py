import pickle
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.data.draws import hashes, permuted
from diptych.data.earlier_order import EarlierSampleOrder
from diptych.data.order import SampleOrder

GOLDEN_BATCHES = [[2, 4, 7, 10], [0, 3, 8, 9], [1, 5, 6, 11], [9, 0, 4, 6]]
GOLDEN_MIXTURE = [[1, 8, 0, 5, 9, 6, 11, 7], [2, 3, 10, 4, 5, 3, 11, 7], [1, 8, 0, 2, 9, 4, 10, 6]]


@st.composite
def orders(draw, most_sources=3):
    counts = draw(st.lists(st.lists(st.integers(0, 15), min_size=1, max_size=4).filter(any), max_size=most_sources,
                           min_size=1))  # fmt: skip
    weights = [draw(st.integers(1, 9)) for _ in counts]
    return SampleOrder(
        np.array(sum(counts, [])),
        seed=draw(st.integers(-3, 2**40)),
        global_batch_size=draw(st.integers(1, 50)),
        shuffle_window=draw(st.integers(1, 30)),
        streams=draw(st.none() | st.integers(1, 20)),
        sources=list(zip(map(len, counts), weights, strict=True)),
    )


def sources_of(order, samples):
    """The first sample of the source of each sample."""
    return np.array([order.source_of(sample)[0] for sample in range(order.total)])[samples]


def attempts(order, num_batches):
    batches = [order.rows(number) for number in range(num_batches)]
    return np.concatenate([b.epochs for b in batches]), np.concatenate([b.samples for b in batches])


@given(order=orders())
@settings(max_examples=40, deadline=None)
def test_every_sample_of_a_source_is_attempted_exactly_once_in_each_of_its_epochs(order):
    num_batches = 2 * order.total // order.global_batch_size + 1
    epochs, samples = attempts(order, num_batches)
    sources = sources_of(order, samples)
    for first in np.unique(sources).tolist():
        _, stop = order.source_of(first)
        size = stop - first
        drawn, drawn_in = samples[sources == first], epochs[sources == first]
        assert drawn_in.tolist() == (np.arange(len(drawn)) // size).tolist()
        for epoch in range(len(drawn) // size):
            assert sorted(drawn[drawn_in == epoch]) == list(range(first, first + size))


@given(order=orders(), batch_number=st.integers(0, 10**9), data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_batch_is_the_same_however_ranks_cut_it_and_wherever_one_starts(order, batch_number, data):
    size = order.global_batch_size
    cuts = sorted({0, size, *data.draw(st.lists(st.integers(0, size), max_size=4))})
    whole = order.rows(batch_number)
    slices = [pickle.loads(pickle.dumps(order)).rows(batch_number, a, b) for a, b in zip(cuts, cuts[1:], strict=False)]
    assert np.array_equal(np.concatenate([s.samples for s in slices]), whole.samples)
    assert np.array_equal(np.concatenate([s.epochs for s in slices]), whole.epochs)


ONE_LARGE_SOURCE = SampleOrder(
    np.full(8, 50), seed=0, global_batch_size=100, shuffle_window=9, sources=[(1, weight) for weight in [93] + [1] * 7]
)


@given(order=orders(most_sources=8) | st.just(ONE_LARGE_SOURCE), data=st.data())
@settings(max_examples=40, deadline=None)
def test_pieces_that_are_planned_together_are_those_of_their_batches(order, data):
    size = order.global_batch_size
    edges = st.tuples(st.integers(0, size), st.integers(0, size)).map(sorted)
    pieces = data.draw(st.lists(st.tuples(st.integers(0, 99), edges).map(lambda p: (p[0], *p[1])), min_size=1))
    for (batch_number, start, stop), rows in zip(pieces, order.plan(pieces), strict=True):
        whole = order.rows(batch_number)
        assert np.array_equal(rows.samples, whole.samples[start:stop])
        assert np.array_equal(rows.epochs, whole.epochs[start:stop])


def test_sources_have_their_proportions_of_each_batch_and_small_ones_repeat():
    counts = np.array([90, 110, 50, 4])
    order = SampleOrder(
        counts, seed=5, global_batch_size=32, shuffle_window=20, sources=[(2, 0.5), (1, 0.375), (1, 0.125)]
    )
    for number in range(20):
        rows = order.rows(number)
        assert Counter(sources_of(order, rows.samples).tolist()) == {0: 16, 200: 12, 250: 4}
    assert rows.epochs[rows.samples >= 250].tolist() == [19] * 4
    # Each rank has its share of every source, so that no rank has only the large pictures of one.
    for start in range(0, 32, 8):
        assert Counter(sources_of(order, order.rows(7, start, start + 8).samples).tolist()) == {0: 4, 200: 3, 250: 1}


def same_shard(order, samples_per_shard, batches):
    """The probability that two rows of a batch come from one shard."""
    size = order.global_batch_size
    pairs = 0
    for batch in batches:
        _, rows = np.unique(order.rows(batch).samples // samples_per_shard, return_counts=True)
        pairs += int((rows * (rows - 1)).sum())
    return pairs / (len(batches) * size * (size - 1))


@pytest.mark.parametrize(("shards", "batch"), [(20_000, 4096), (1000, 4096), (1000, 500), (30, 256)])
def test_two_rows_of_a_batch_come_from_one_shard_as_seldom_as_in_a_uniform_shuffle(shards, batch):
    order = SampleOrder(np.full(shards, 1000), seed=1, global_batch_size=batch, shuffle_window=1000)
    epoch = shards * 1000 // batch
    batches = np.linspace(0, epoch - 2, 20).astype(int).tolist()
    assert same_shard(order, 1000, batches) <= 1.1 / shards


def test_a_rank_reads_whole_stretches_of_few_shards():
    order = SampleOrder(np.full(20_000, 100), seed=1, global_batch_size=1024, shuffle_window=100)
    seen = [order.rows(batch, 0, 32).samples for batch in range(200)]
    shards, counts = np.unique(np.concatenate(seen) // 100, return_counts=True)
    assert len(shards) <= 32 * 4  # 32 streams take 200 samples each: two windows, of two shards at most, and one edge
    assert counts.sum() == 32 * 200


def test_neighbouring_streams_go_on_to_new_shards_at_different_times():
    order = SampleOrder(np.full(20_000, 100), seed=1, global_batch_size=1024, shuffle_window=100)
    seen, new_shards = set(), []
    for batch in range(400):
        shards = set((order.rows(batch, 0, 64).samples // 100).tolist())
        new_shards.append(len(shards - seen))
        seen |= shards
    assert max(new_shards[50:]) <= 8 and sum(new_shards[50:]) > 150


@pytest.mark.parametrize("streams", [1, 7, 100])
def test_fewer_streams_can_be_asked_for(streams):
    order = SampleOrder(np.full(200, 1000), seed=1, global_batch_size=256, shuffle_window=1000, streams=streams)
    assert order.num_streams == streams
    assert streams <= len(np.unique(order.rows(30).samples // 1000)) <= 3 * streams


@pytest.mark.parametrize("kind", [SampleOrder, EarlierSampleOrder])
def test_small_data_are_shuffled_as_one(kind):
    order = kind(np.array([100, 100]), seed=0, global_batch_size=100, shuffle_window=1000)
    assert order.num_streams == 1
    from_first_shard = int(np.sum(order.rows(0).samples < 100))
    assert 30 < from_first_shard < 70


@pytest.mark.parametrize("kind", [SampleOrder, EarlierSampleOrder])
def test_epochs_and_seeds_differ_in_order(kind):
    def first_epochs(seed):
        order = kind(np.array([30, 34]), seed=seed, global_batch_size=64, shuffle_window=32)
        return order.rows(0).samples.tolist(), order.rows(1).samples.tolist()

    first, second = first_epochs(0)
    assert first != second and first != first_epochs(1)[0]
    assert first != sorted(first)


@given(size=st.integers(1, 300), key=st.integers(0, 2**64 - 1))
def test_each_key_permutes_numbers_of_any_size(size, key):
    found = permuted(np.arange(size), np.full(size, size), np.full(size, key, dtype=np.uint64))
    assert sorted(found.tolist()) == list(range(size))


def test_all_permutations_are_equally_likely():
    size, keys = 4, hashes(np.arange(2400))
    found = Counter(tuple(permuted(np.arange(size), np.full(size, size), np.full(size, key))) for key in keys)
    assert len(found) == 24
    assert 60 < min(found.values()) and max(found.values()) < 150


def test_the_order_of_a_run_never_changes_between_versions():
    order = SampleOrder(np.array([5, 3, 4]), seed=7, global_batch_size=4, shuffle_window=3)
    assert [order.rows(number).samples.tolist() for number in range(4)] == GOLDEN_BATCHES
    mixed = SampleOrder(
        np.array([5, 3, 4]), seed=7, global_batch_size=8, shuffle_window=2, sources=[(2, 0.7), (1, 0.3)]
    )
    assert [mixed.rows(number).samples.tolist() for number in range(3)] == GOLDEN_MIXTURE


def test_an_index_without_samples_is_refused():
    with pytest.raises(ValueError, match="no samples"):
        SampleOrder(np.array([0, 0]), seed=0, global_batch_size=4, shuffle_window=10)
