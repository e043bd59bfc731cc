import io
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from diptych.data.avif_boxes import coded_size
from diptych.data.picture_safety import PictureError, PictureReason, open_picture


def avif(width, height, mode="RGB", **options):
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(file, "AVIF", **options)
    return file.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
@pytest.mark.parametrize("size", [(1, 1), (64, 64), (401, 303), (3000, 17)])
def test_the_size_is_that_of_the_frame(size, mode):
    assert coded_size(avif(*size, mode)) == size


def test_the_size_of_an_animation_is_that_of_its_first_frame():
    frames = [Image.new("RGB", (70, 50), colour) for colour in ("red", "green")]
    data = avif(70, 50, save_all=True, append_images=frames)
    assert data[4:12] == b"ftypavis" and coded_size(data) == (70, 50)


def claiming(data, size, other):
    """With another size in the boxes."""
    box = b"ispe\0\0\0\0"
    changed = data.replace(box + struct.pack(">II", *size), box + struct.pack(">II", *other))
    assert changed != data
    return changed


def test_a_picture_that_claims_to_be_smaller_than_its_frame_is_refused_by_its_frame():
    lie = claiming(avif(400, 300), (400, 300), (64, 64))
    assert Image.open(io.BytesIO(lie)).size == (64, 64)
    with pytest.raises(PictureError, match="400 x 300 pixels; at most 119999") as refused:
        open_picture(lie, max_pixels=119_999)
    assert refused.value.reason is PictureReason.TOO_MANY_PIXELS
    assert open_picture(lie, max_pixels=120_000).size == (64, 64)
    with pytest.raises(PictureError, match="4000 x 3000 pixels"):
        open_picture(claiming(avif(40, 30), (40, 30), (4000, 3000)), max_pixels=10_000)


def test_the_largest_of_several_frames_counts_and_one_in_pieces_is_put_together():
    """A second sequence header behind the first, as an attacker would write it."""
    small, large = avif(40, 30), avif(1000, 750)
    units = large[large.rindex(b"mdat") + 4 :]
    start = small.rindex(b"mdat") + 4
    joined = bytearray(small + units)
    joined[start - 8 : start - 4] = (len(joined) - start + 8).to_bytes(4, "big")
    length = len(small) - start
    at = joined.index(b"iloc")
    place = joined.index(length.to_bytes(4, "big"), at)
    joined[place : place + 4] = (length + len(units)).to_bytes(4, "big")
    assert coded_size(bytes(joined)) == (1000, 750)


def test_a_heic_that_claims_to_be_smaller_is_refused():
    pillow_heif = pytest.importorskip("pillow_heif")
    file = io.BytesIO()
    pillow_heif.from_pillow(Image.new("RGB", (1000, 750))).save(file)
    with pytest.raises(PictureError):
        open_picture(claiming(file.getvalue(), (1000, 750), (64, 64)), max_pixels=10_000)


SOUND = avif(40, 30)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(SOUND) - 1), st.integers(0, 255)), max_size=8), st.integers(0, len(SOUND)))
def test_broken_files_have_some_size_or_none(changes, end):
    changed = bytearray(SOUND)
    for place, value in changes:
        changed[place] = value
    assert len(coded_size(bytes(changed[:end]))) == 2
