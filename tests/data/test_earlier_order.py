import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.data.draws import permutation
from diptych.data.earlier_order import EarlierSampleOrder

GOLDEN_PERMUTATION = [4, 1, 7, 5, 0, 6, 3, 2]
GOLDEN_BATCHES = [[5, 2, 8, 10], [6, 1, 3, 11], [7, 0, 4, 9], [7, 10, 11, 2]]

orders = st.builds(
    lambda counts, seed, batch, window: EarlierSampleOrder(
        np.array(counts), seed=seed, global_batch_size=batch, shuffle_window=window
    ),
    st.lists(st.integers(0, 40), min_size=1, max_size=8).filter(any),
    st.integers(-3, 2**40),
    st.integers(1, 50),
    st.integers(1, 30),
)


def attempts(order, num_batches):
    batches = [order.rows(number) for number in range(num_batches)]
    return np.concatenate([b.epochs for b in batches]), np.concatenate([b.samples for b in batches])


@given(order=orders)
@settings(max_examples=30, deadline=None)
def test_every_sample_is_attempted_exactly_once_an_epoch(order):
    num_batches = 3 * order.total // order.global_batch_size + 1
    epochs, samples = attempts(order, num_batches)
    for epoch in range(num_batches * order.global_batch_size // order.total):
        assert sorted(samples[epochs == epoch]) == list(range(order.total))


@given(order=orders, batch_number=st.integers(0, 10**9), data=st.data())
@settings(max_examples=30, deadline=None)
def test_a_batch_is_the_same_however_ranks_cut_it_and_wherever_one_starts(order, batch_number, data):
    size = order.global_batch_size
    cuts = sorted({0, size, *data.draw(st.lists(st.integers(0, size), max_size=4))})
    whole = order.rows(batch_number)
    slices = [order.rows(batch_number, a, b) for a, b in zip(cuts, cuts[1:], strict=False)]
    assert np.array_equal(np.concatenate([s.samples for s in slices]), whole.samples)
    assert np.array_equal(np.concatenate([s.epochs for s in slices]), whole.epochs)


def test_a_contiguous_slice_of_rows_reads_few_shards():
    order = EarlierSampleOrder(np.full(64, 100), seed=1, global_batch_size=64, shuffle_window=50)
    shards = {int(s) // 100 for batch in range(20) for s in order.rows(batch, 0, 8).samples}
    assert len(shards) <= 8 * 2


@pytest.mark.parametrize("batch", [512, 1000, 4095, 4099])
def test_a_batch_of_any_size_is_mixed_from_all_streams(batch):
    order = EarlierSampleOrder(np.full(500, 1000), seed=0, global_batch_size=batch, shuffle_window=100)
    assert order.num_streams == 64
    shards = np.unique(order.rows(3).samples // 1000)
    assert len(shards) >= 60


@given(order=orders)
@settings(max_examples=30, deadline=None)
def test_streams_take_rows_that_differ_by_one_at_most(order):
    rows = np.arange(order.global_batch_size)
    sizes = np.bincount(rows * order.num_streams // order.global_batch_size, minlength=order.num_streams)
    assert sizes.max() - sizes.min() <= 1
    assert sizes.min() >= 1


def test_the_order_of_a_run_never_changes_between_versions():
    assert permutation(8, 0, 1).tolist() == GOLDEN_PERMUTATION
    order = EarlierSampleOrder(np.array([5, 3, 4]), seed=7, global_batch_size=4, shuffle_window=3)
    assert [order.rows(number).samples.tolist() for number in range(4)] == GOLDEN_BATCHES


def test_an_index_without_samples_is_refused():
    with pytest.raises(ValueError, match="no samples"):
        EarlierSampleOrder(np.array([0, 0]), seed=0, global_batch_size=4, shuffle_window=10)
