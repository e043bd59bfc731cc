"""A progressive JPEG that becomes much smaller is decoded without its last scan."""

import numpy as np
import pytest
import simplejpeg

from diptych.data.jpeg_segments import without_last_bit
from diptych_shards.pictures.decode import open_file
from tests.data_prep.made_pictures import encoded, opened, psnr, scene

PROGRESSIVE = encoded(scene(), progressive=True)
QUANTISER = b"\xff\xdb\x00\x43\x00"
assert QUANTISER in PROGRESSIVE
FIRST_REFINEMENT_OF_MEANS = 7
"""Of the ten scans that libjpeg writes for a picture in colour; three that refine detail follow."""


def decoded(data, size=None, *, fast=False):
    return open_file(data, max_pixels=10**6).decode(size, fast=fast)[0]


def test_scans_that_add_a_last_bit_to_detail_are_left_out_and_no_others():
    shorter, num_scans = PROGRESSIVE, 10
    while (next_one := without_last_bit(shorter)) is not shorter:
        num_scans -= 1
        assert (next_one.count(b"\xff\xda"), next_one[-2:]) == (num_scans, b"\xff\xd9")
        assert psnr(opened(next_one), opened(PROGRESSIVE)) > 30
        shorter = next_one
    assert num_scans == FIRST_REFINEMENT_OF_MEANS


OTHERS = {
    "baseline": encoded(scene()),
    "of four colours": encoded(scene().convert("CMYK")),
    "of large steps": encoded(scene(), progressive=True, quality=55),
    "of unknown steps": PROGRESSIVE.replace(QUANTISER, QUANTISER[:4] + b"\x05", 1),
    "without end": PROGRESSIVE[:-2],
    "cut in a header": PROGRESSIVE[: PROGRESSIVE.rfind(b"\xff\xda") + 4],
    "without scan": PROGRESSIVE[:100],
    "nothing": b"\xff\xd8\xff\xd9",
    "no byte": b"",
}


@pytest.mark.parametrize("data", OTHERS.values(), ids=OTHERS)
def test_any_other_file_stays_as_it_is(data):
    assert without_last_bit(data) is data


@pytest.mark.parametrize(("fast", "times", "factor"), [(False, 4, 1), (True, 2, 2)])
def test_it_is_left_out_from_so_many_times_the_size_on(fast, times, factor):
    def wanted(data):
        return simplejpeg.decode_jpeg(data, "RGB", min_width=400 // factor, min_height=300 // factor)

    small, larger = (400 // times, 300 // times), (400 // times + 1, 300 // times)
    np.testing.assert_array_equal(decoded(PROGRESSIVE, small, fast=fast), wanted(without_last_bit(PROGRESSIVE)))
    np.testing.assert_array_equal(decoded(PROGRESSIVE, larger, fast=fast), decoded(PROGRESSIVE))
    assert not np.array_equal(wanted(without_last_bit(PROGRESSIVE)), wanted(PROGRESSIVE))


def test_a_baseline_jpeg_of_any_size_keeps_its_bits():
    data = encoded(scene())
    np.testing.assert_array_equal(decoded(data, (390, 290)), decoded(data))


def test_quality_56_is_enough():
    data = encoded(scene(), progressive=True, quality=56)
    assert without_last_bit(data) != data
