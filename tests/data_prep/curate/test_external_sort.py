"""Records sorted on disk."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych_shards.curate import external_sort
from diptych_shards.curate.external_sort import merge_records, merge_to_few, num_records, read_range, write_sorted
from diptych_shards.run.engine import LocalEngine

DTYPE = np.dtype([("key", "<u8"), ("from", "<u2"), ("number", "<u2")])
KEYS = st.one_of(st.integers(0, 5), st.integers(0, 2**64 - 1))


@pytest.fixture(scope="module", autouse=True)
def small():
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(external_sort, "MOST_FILES", 3)
        patched.setattr(external_sort, "BLOCK_RECORDS", 4)
        yield


@given(st.lists(st.lists(KEYS, max_size=20), max_size=30), KEYS, KEYS)
@settings(deadline=None, max_examples=30)
def test_merged_files_hold_the_same_records_and_ranges(tmp_path_factory, files, one, other):
    folder = tmp_path_factory.mktemp("files")
    paths, everything = [], []
    for name, keys in enumerate(files):
        records = np.array([(key, name, number) for number, key in enumerate(keys)], DTYPE)
        everything += records.tolist()
        paths.append(folder / str(name))
        write_sorted(paths[-1], records)
    merge = partial(merge_records, DTYPE)
    few = merge_to_few(LocalEngine(1), paths, merge, lambda level, number: folder / f"merged_{level}_{number}")
    assert len(few) <= 3 and num_records(few, DTYPE) == len(everything)
    for path in few:
        keys = np.fromfile(path, DTYPE)["key"].tolist()
        assert keys == sorted(keys)
    for low, high in ((min(one, other), max(one, other)), (0, 2**64)):
        wanted = [record for record in everything if low <= record[0] < high]
        for some in (paths, few):
            assert sorted(read_range(some, DTYPE, low, high).tolist()) == sorted(wanted)
