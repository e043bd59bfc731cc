"""Which pictures have a copy in shards: by pixels, by look, and not by a perceptual hash alone."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image

from diptych.data.shards import open_index
from diptych_shards.run.engine import LocalEngine
from diptych_shards.select import copies
from diptych_shards.select.copies import HashedShards
from diptych_shards.select.hashes import HASHES, hash_picture
from tests.data_prep.made_pictures import encoded
from tests.data_prep.select.shards import jpeg, write_shards
from tests.data_prep.select.test_dedup import changed, drawings

pytestmark = pytest.mark.usefixtures("forked_workers")

COLOUR = encoded(Image.new("RGB", (40, 30), (10, 200, 30)), "PNG")


def shards(folder, *pictures):
    return write_shards(folder, [[(each, "a picture", {}) for each in part] for part in pictures])


def hashed(folder, spare):
    return HashedShards(open_index(str(folder)), LocalEngine(2), spare)


def copies_of(found, pictures):
    rows = np.zeros(len(pictures), HASHES)
    for row, picture in enumerate(pictures):
        rows[row] = hash_picture(picture)
    return found.copies_of(rows).tolist()


def test_recoded_copies_are_found_among_drawings_whose_perceptual_hashes_agree(tmp_path):
    known = drawings()
    half = len(known) // 2
    found = hashed(shards(tmp_path / "shards", [encoded(each, "PNG") for each in known[:half]]), tmp_path)
    numbers = copies_of(found, [changed(each, 75) for each in known])
    missed = [place for place in range(half) if numbers[place] == -1]
    expected = [-1 if place in missed or place >= half else place for place in range(len(known))]
    assert numbers == expected and len(missed) <= 2  # of 24: some bits of their hashes are uncertain


def test_pictures_too_flat_for_a_hash_are_copies_only_with_the_same_pixels(tmp_path):
    other = encoded(Image.new("RGB", (40, 30), (10, 200, 31)), "PNG")
    found = hashed(shards(tmp_path / "shards", [jpeg(1)], [jpeg(2), COLOUR]), tmp_path)
    assert copies_of(found, [COLOUR, other, b"not a picture", COLOUR]) == [2, -1, -1, 2]


def test_a_training_picture_that_does_not_decode_is_like_nothing(tmp_path):
    found = hashed(shards(tmp_path / "shards", [jpeg(0)[:200], jpeg(1)]), tmp_path)
    assert copies_of(found, [jpeg(0)[:200], jpeg(1)]) == [-1, 1]


def test_hashes_of_a_folder_that_cannot_be_written_go_elsewhere_and_are_kept(tmp_path, monkeypatch):
    folder = shards(tmp_path / "shards", [jpeg(0)], [jpeg(1)])
    spare = tmp_path / "run" / "training_hashes"

    def find(is_writable, may_hash):
        with monkeypatch.context() as patch:
            patch.setattr(copies, "_can_be_written", lambda folder: is_writable)
            if not may_hash:
                patch.setattr(copies, "hash_missing", lambda units, *_: pytest.fail("hashed again") if units else None)
            return copies_of(hashed(folder, spare), [jpeg(1, quality=70)])

    assert find(is_writable=False, may_hash=True) == [1]
    assert not (folder / "_index" / "select").exists()
    assert find(is_writable=False, may_hash=False) == [1]
    # Those in the folder are used even if they cannot be written.
    assert find(is_writable=True, may_hash=True) == [1]
    shutil.rmtree(spare)
    assert find(is_writable=False, may_hash=False) == [1]
