import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.data.caption_exchange import arranged
from diptych.data.groups import GroupedOrder
from diptych.data.order import SampleOrder
from diptych.data.shard_writer import ShardWriter
from diptych.data.shards import open_index
from diptych.data.unique_captions import BLOCK_BATCHES, UniqueCaptions, caption_hashes
from diptych.errors import UserError


@st.composite
def orders(draw):
    """An order with unique captions, the order it rearranges, its captions, and its batch size."""
    counts = np.array(draw(st.lists(st.integers(1, 30), min_size=2, max_size=4)))
    size, seed = draw(st.integers(1, 20)), draw(st.integers(0, 99))
    total = int(counts.sum())
    if draw(st.booleans()):
        groups = np.arange(total) % 3
        order = GroupedOrder(groups, seed=seed, global_batch_size=size, power=0.5, neighbours=2)
        ends = [total]
    else:
        sources = [(1, 1), (len(counts) - 1, 2)] if size >= 4 else []
        order = SampleOrder(counts, seed=seed, global_batch_size=size, shuffle_window=7, sources=sources)
        ends = np.cumsum([counts[0], total - counts[0]]) if sources else [total]
    captions = np.array(draw(st.lists(st.integers(0, 15), min_size=total, max_size=total)), dtype=np.uint64)
    numbers = lambda samples: np.searchsorted(ends, samples, side="right")  # noqa: E731
    return UniqueCaptions(order, size, captions, numbers), order, captions, size, numbers


def attempts(order, batches):
    rows = [order.rows(batch) for batch in batches]
    return [(r.samples.tolist(), r.epochs.tolist()) for r in rows]


@given(drawn=orders(), block=st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_a_block_has_the_samples_that_it_had_and_its_batches_keep_sources_and_epochs(drawn, block):
    unique, order, _, _, numbers = drawn
    batches = range(block * BLOCK_BATCHES, (block + 1) * BLOCK_BATCHES)
    before, after = attempts(order, batches), attempts(unique, batches)
    assert sorted(pair for s, e in before for pair in zip(s, e, strict=True)) == sorted(
        pair for s, e in after for pair in zip(s, e, strict=True)
    )
    for (samples, epochs), (others, other_epochs) in zip(before, after, strict=True):
        assert epochs == other_epochs
        assert numbers(np.array(samples)).tolist() == numbers(np.array(others)).tolist()


@given(drawn=orders(), block=st.integers(0, 5))
@settings(max_examples=25, deadline=None)
def test_no_batch_has_more_repeated_captions_than_before(drawn, block):
    unique, order, captions, size, _ = drawn
    for batch in range(block * BLOCK_BATCHES, (block + 1) * BLOCK_BATCHES):
        kept, was = (len(set(captions[one.rows(batch).samples].tolist())) for one in (unique, order))
        assert kept >= was


@given(drawn=orders(), batch=st.integers(0, 10**6), data=st.data())
@settings(max_examples=25, deadline=None)
def test_a_batch_is_the_same_however_ranks_cut_it_and_wherever_one_starts(drawn, batch, data):
    unique, _, _, size, _ = drawn
    cut = data.draw(st.integers(0, size))
    whole = unique.rows(batch).samples.tolist()
    again, (*given, source_numbers) = unique.__reduce__()
    other = again(*pickle.loads(pickle.dumps(given)), source_numbers)
    [first, second] = other.plan([(batch, 0, cut), (batch, cut, size)])
    assert [*first.samples, *second.samples] == whole


@pytest.mark.parametrize(("captions", "repeated_before"), [(2000, 10), (300, 100), (135, 500), (120, 700), (10, 1800)])
def test_a_block_repeats_only_captions_with_more_copies_than_batches(captions, repeated_before):
    order = SampleOrder(np.full(10, 1000), seed=1, global_batch_size=128, shuffle_window=1000)
    of_samples = np.random.default_rng(0).integers(0, captions, 10_000).astype(np.uint64)
    unique = UniqueCaptions(order, 128, of_samples, np.zeros_like)

    def repeated(one):
        return sum(128 - len(np.unique(of_samples[one.rows(batch).samples])) for batch in range(BLOCK_BATCHES))

    block = np.concatenate([order.rows(batch).samples for batch in range(BLOCK_BATCHES)])
    _, copies = np.unique(of_samples[block], return_counts=True)
    assert repeated(order) > repeated_before
    assert repeated(unique) == np.maximum(copies - BLOCK_BATCHES, 0).sum()


@pytest.mark.parametrize("one_kind", [True, False])
def test_many_copies_of_one_caption_in_the_other_batches_hold_nothing_up(one_kind):
    size = 4096
    captions = np.zeros(BLOCK_BATCHES * size, dtype=np.int64)
    captions[:size] = 1 + np.arange(size) // 2  # pairs, in one batch
    kinds = np.zeros_like(captions) if one_kind else np.arange(len(captions)) % 3
    batches = captions[arranged(captions, kinds, size, 1)].reshape(BLOCK_BATCHES, size)
    others = [np.unique(batch[batch > 0], return_counts=True)[1] for batch in batches]
    assert np.concatenate(others).tolist() == [1] * size and (batches == 0).any(axis=1).all()


def test_samples_are_exchanged_with_neighbouring_rows_so_that_a_rank_keeps_its_shards():
    size, ranks = 1024, 8
    captions = np.random.default_rng(0).integers(0, 5000, BLOCK_BATCHES * size)
    arrangement = arranged(captions, np.zeros_like(captions), size, 1)
    rows, come_from = np.arange(len(captions)) % size, arrangement % size
    moved = arrangement != np.arange(len(captions))
    other_rank = rows * ranks // size != come_from * ranks // size
    assert moved.sum() > 1000
    assert other_rank.sum() < 0.05 * moved.sum()  # of rows at random 7 in 8


def test_a_caption_that_is_everywhere_stays_and_the_others_are_unique():
    order = SampleOrder(np.array([640]), seed=1, global_batch_size=16, shuffle_window=640)
    captions = np.arange(640, dtype=np.uint64)
    captions[::4] = 0  # four of each batch
    unique = UniqueCaptions(order, 16, captions, np.zeros_like)
    for batch in range(BLOCK_BATCHES):
        found, times = np.unique(captions[unique.rows(batch).samples], return_counts=True)
        assert times[found != 0].tolist() == [1] * (times.size - 1)


def write_shards(folder, captions):
    for shard, texts in enumerate(captions):
        with ShardWriter(folder, shard) as writer:
            for row, text in enumerate(texts):
                files = {"jpg": b"picture"} if text is None else {"jpg": b"picture", "txt": text.encode()}
                writer.add(f"{shard}-{row}", files)


def test_equal_captions_have_equal_hashes_and_missing_ones_are_all_different(tmp_path):
    write_shards(tmp_path / "shards", [["a", "b", None], [None, "a"]])
    found = caption_hashes(open_index(tmp_path / "shards"), tmp_path)
    assert found[0] == found[4] and len(set(found.tolist())) == 4
    assert found.tolist() == caption_hashes(open_index(tmp_path / "shards"), tmp_path).tolist()


def test_hashes_in_a_file_are_mapped_by_a_loader_process_and_not_sent_to_it(tmp_path):
    np.save(tmp_path / "hashes.npy", np.arange(100_000, dtype=np.uint64))
    order = SampleOrder(np.full(10, 10_000), seed=1, global_batch_size=128, shuffle_window=1000)
    mapped = np.load(tmp_path / "hashes.npy", mmap_mode="r")
    unique = UniqueCaptions(order, 128, mapped, np.zeros_like)
    sent = pickle.dumps(unique)
    assert len(sent) < 10_000
    assert np.array_equal(pickle.loads(sent).rows(3).samples, unique.rows(3).samples)


def test_shards_without_any_txt_are_refused_in_one_line(tmp_path):
    write_shards(tmp_path / "shards", [[None, None]])
    with pytest.raises(UserError, match=r"compares the \.txt of samples, and those of data.train have only jpg"):
        caption_hashes(open_index(tmp_path / "shards"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["shards"]
