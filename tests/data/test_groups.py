import pickle
from collections import Counter
from copy import copy
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.data.groups import GroupedOrder, fingerprint_with, numbered, read_groups, shares_of_groups, write_groups
from diptych.data.shard_index_file import Shard
from diptych.data.shards import ShardIndex
from diptych.errors import UserError


@st.composite
def orders(draw, power=None):
    groups = draw(st.lists(st.integers(0, 9), min_size=1, max_size=80))
    return GroupedOrder(
        np.array(groups),
        seed=draw(st.integers(-3, 2**40)),
        global_batch_size=draw(st.integers(1, 30)),
        power=draw(st.floats(0, 1)) if power is None else power,
        neighbours=draw(st.integers(1, 100)),
    ), np.array(groups)


def attempts(order, rows):
    batches = [order.rows(number, 0, order._size) for number in range(rows // order._size + 1)]
    epochs, samples = ([getattr(batch, part) for batch in batches] for part in ("epochs", "samples"))
    return np.concatenate(epochs)[:rows], np.concatenate(samples)[:rows]


@given(given_order=orders(power=1))
@settings(max_examples=80, deadline=None)
def test_with_power_1_every_sample_comes_exactly_once_in_each_epoch(given_order):
    order, groups = given_order
    epochs, samples = attempts(order, 2 * len(groups))
    for epoch in (0, 1):
        of_epoch = slice(epoch * len(groups), (epoch + 1) * len(groups))
        assert sorted(samples[of_epoch]) == list(range(len(groups)))
        assert set(epochs[of_epoch]) == {epoch}


@given(given_order=orders())
@settings(max_examples=80, deadline=None)
def test_a_group_has_its_share_of_each_epoch_and_repeats_no_sample_before_all_have_come(given_order):
    order, groups = given_order
    epochs, samples = attempts(order, 3 * len(groups))
    for epoch in range(3):
        of_epoch = groups[samples[epoch * len(groups) : (epoch + 1) * len(groups)]]
        assert Counter(of_epoch.tolist()) == dict(zip(np.unique(groups).tolist(), order._shares.tolist(), strict=True))
    for group in np.unique(groups).tolist():
        members = np.flatnonzero(groups == group)
        passes, times = np.unique(epochs[groups[samples] == group], return_counts=True)
        assert all(number == len(members) for number in times[:-1]) and times[-1] <= len(members)
        assert passes.tolist() == list(range(len(passes)))
    assert max(Counter(zip(epochs.tolist(), samples.tolist(), strict=True)).values()) == 1


@given(given_order=orders(), batch_number=st.integers(0, 10**9), data=st.data())
@settings(max_examples=50, deadline=None)
def test_a_batch_is_the_same_however_ranks_cut_it_and_wherever_one_starts(given_order, batch_number, data):
    order, _ = given_order
    size = order._size
    cut = data.draw(st.integers(0, size))
    whole = order.rows(batch_number)
    parts = [pickle.loads(pickle.dumps(order)).rows(batch_number, *ends) for ends in ((0, cut), (cut, size))]
    assert np.array_equal(np.concatenate([part.samples for part in parts]), whole.samples)
    assert np.array_equal(np.concatenate([part.epochs for part in parts]), whole.epochs)


@given(groups=st.lists(st.integers(0, 6) | st.integers(0, 2**40), min_size=1, max_size=20))
@settings(max_examples=50, deadline=None)
def test_groups_are_numbered_without_gaps_in_their_order(groups):
    expected = [sorted(set(groups)).index(group) for group in groups]
    found = numbered(np.array(groups))
    assert found.tolist() == expected and found.dtype == np.int32


def test_an_order_keeps_and_sends_to_loader_processes_four_bytes_a_sample(monkeypatch):
    groups = np.arange(100_000, dtype=np.int32) % 7
    assert numbered(groups) is groups
    order = GroupedOrder(groups, seed=1, global_batch_size=64, power=1, neighbours=1)
    sent = pickle.dumps(order)
    assert len(sent) < 4.1 * len(groups)
    monkeypatch.setattr(np, "argsort", None)  # which takes minutes for a billion samples
    assert np.array_equal(copy(pickle.loads(sent)).rows(5).samples, order.rows(5).samples)


def test_shares_lie_between_those_of_samples_and_equal_ones():
    sizes = np.array([900, 90, 10])
    assert shares_of_groups(sizes, 1).tolist() == [900, 90, 10]
    assert shares_of_groups(sizes, 0).tolist() == [334, 333, 333]
    # 703.4, 222.4 and 74.1: roots of the sizes.
    assert shares_of_groups(sizes, 0.5).tolist() == [703, 223, 74]


def test_neighbours_stand_together_in_a_batch():
    groups = np.repeat(np.arange(100), 50)
    alone, together = (
        GroupedOrder(groups, seed=1, global_batch_size=64, power=1, neighbours=number) for number in (1, 16)
    )
    # Of 64 rows of 100 groups, about 47 groups; four stretches of 16 rows have 4 groups, and some 8.
    assert 38 <= np.mean([len(set(groups[alone.rows(batch).samples])) for batch in range(30)]) <= 56
    assert 4 <= np.mean([len(set(groups[together.rows(batch).samples])) for batch in range(30)]) <= 8


def index(name="0.tar", samples=4):
    return ShardIndex([Shard(Path(name), samples, 1, "00" * 32)])


def test_a_file_of_groups_comes_back_and_belongs_to_its_shards(tmp_path):
    groups = np.array([3, 0, 0, 1])
    write_groups(tmp_path / "groups.npz", groups, index().fingerprint)
    assert read_groups(tmp_path / "groups.npz", index()).tolist() == groups.tolist()
    assert fingerprint_with(groups, "shards") != fingerprint_with(groups[::-1], "shards")
    with pytest.raises(UserError, match=r"groups of other shards than data.train \(4 samples there, 4 here\)"):
        read_groups(tmp_path / "groups.npz", index("1.tar"))


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 cut", b"groups"])
def test_what_is_no_file_of_groups_is_refused_in_one_line(tmp_path, content):
    if content is not None:
        (tmp_path / "groups.npz").write_bytes(content)
    with pytest.raises(UserError, match="data.groups.file .*diptych cluster") as refused:
        read_groups(tmp_path / "groups.npz", index())
    assert "\n" not in str(refused.value)
