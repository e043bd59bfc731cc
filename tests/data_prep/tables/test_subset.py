import numpy as np
import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diptych_shards.tables.columns import TableError
from diptych_shards.tables.subset import Subset

SMALL = st.integers(0, 5)  # so that halves coincide
UIDS = st.tuples(SMALL | st.integers(2**64 - 3, 2**64 - 1), SMALL)


def save(path, uids):
    np.save(path, np.array(uids, "u8,u8"))
    return path


def as_text(uid):
    return f"{uid[0]:016x}{uid[1]:016x}"


@given(held=st.lists(UIDS, max_size=20), asked=st.lists(UIDS, max_size=20))
def test_exactly_the_uids_of_the_file_are_in_the_subset(tmp_path_factory, held, asked):
    subset = Subset(save(tmp_path_factory.mktemp("subset") / "s.npy", sorted(held)))
    found = subset.contains(pyarrow.array(map(as_text, asked), pyarrow.string()))
    assert found.tolist() == [uid in held for uid in asked]


def test_a_text_that_is_not_a_uid_is_not_in_the_subset(tmp_path):
    subset = Subset(save(tmp_path / "s.npy", [(0, 0), (0, 0xABCDEF)]))
    asked = [None, "", "0" * 31, "0" * 33, "g" * 32, "é" * 16, "0" * 32, as_text((0, 0xABCDEF)).upper()]
    assert subset.contains(pyarrow.array(asked)).tolist() == [False] * 6 + [True, True]


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(3, np.int64), "dtype u8,u8"),
        (np.zeros((3, 3), "u8,u8"), "dtype u8,u8"),
        (np.array([(2, 1), (1, 2)], "u8,u8"), "not sorted"),
        (np.array([(1, 2), (1, 1)], "u8,u8"), "not sorted"),
    ],
)
def test_another_array_is_refused(tmp_path, array, message):
    np.save(tmp_path / "s.npy", array)
    with pytest.raises(TableError, match=message):
        Subset(tmp_path / "s.npy")


def test_a_pickle_is_not_loaded(tmp_path):
    np.save(tmp_path / "s.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(TableError, match="not a readable .npy file"):
        Subset(tmp_path / "s.npy")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(TableError, match="not a readable .npy file"):
        Subset(tmp_path / "s.npy")
