"""A WebP read straight through libwebp is the picture that Pillow reads."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from diptych.data.picture_safety import CRAWLED_FORMATS, PictureError, PictureFile
from diptych_shards.pictures.decode import WebpFile, open_file
from tests.data_prep.made_pictures import encoded, scene

MOST = 10**6
EXIF = Image.Exif()
EXIF[0x0112], EXIF[0x010F] = 6, "Maker"
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
PROFILE = PROFILE.replace(b"rXYZ", b"????", 1).replace(b"bXYZ", b"rXYZ", 1).replace(b"????", b"bXYZ", 1)
PLAIN = {
    "lossy": encoded(scene(61, 37), "WEBP"),
    "lossless": encoded(scene(61, 37), "WEBP", lossless=True),
    "lossy with metadata": encoded(scene(61, 37), "WEBP", exif=EXIF, icc_profile=PROFILE),
    "lossless with metadata": encoded(scene(61, 37), "WEBP", lossless=True, exif=EXIF, icc_profile=PROFILE),
    "a single pixel": encoded(scene(1, 1), "WEBP"),
    "bytes behind its end": encoded(scene(61, 37), "WEBP") + b"PK\3\4",
}
SEE_THROUGH = scene(61, 37).convert("RGBA")
SEE_THROUGH.putalpha(Image.linear_gradient("L").resize((61, 37)))
ODD = {
    "transparent": encoded(SEE_THROUGH, "WEBP"),
    "transparent and lossless": encoded(SEE_THROUGH, "WEBP", lossless=True),
    "animated": encoded(scene(61, 37), "WEBP", save_all=True, append_images=[scene(61, 37).rotate(180)]),
    "cut": PLAIN["lossy"][:-1],
    "of no size": PLAIN["lossy"][:26] + b"\0\0" + PLAIN["lossy"][28:],
}


def by_pillow(data):
    return PictureFile(data, max_pixels=MOST, formats=CRAWLED_FORMATS).decode()


@pytest.mark.parametrize("data", PLAIN.values(), ids=PLAIN)
def test_a_plain_webp_is_read_straight_to_the_pixels_and_facts_that_pillow_gives(data):
    file = open_file(data, max_pixels=MOST)
    assert isinstance(file, WebpFile)
    pixels, facts = file.decode()
    assert isinstance(pixels, np.ndarray)
    wanted, wanted_facts = by_pillow(data)
    np.testing.assert_array_equal(pixels, np.asarray(wanted))
    assert (file.width, file.height) == wanted.size
    assert facts == wanted_facts


@pytest.mark.parametrize("data", ODD.values(), ids=ODD)
def test_what_is_not_plain_is_left_to_pillow(data):
    try:
        assert isinstance(open_file(data, max_pixels=MOST), PictureFile)
    except PictureError:
        pass


def test_a_webp_of_too_many_pixels_is_refused_by_its_header():
    with pytest.raises(PictureError, match="61 x 37 pixels; at most 2000"):
        open_file(PLAIN["lossy"], max_pixels=2000)


@pytest.mark.parametrize("data", PLAIN.values(), ids=PLAIN)
@given(changes=st.lists(st.tuples(st.integers(0, 2_000), st.integers(0, 255)), max_size=4), cut=st.integers(0, 60))
@settings(max_examples=60, deadline=None)
def test_a_damaged_webp_is_what_pillow_makes_of_it(data, changes, cut):
    damaged = bytearray(data)
    for position, value in changes:
        damaged[position % len(damaged)] = value
    damaged = bytes(damaged[: len(damaged) - cut])
    try:
        wanted, wanted_facts = by_pillow(damaged)
    except PictureError:
        with pytest.raises(PictureError):
            open_file(damaged, max_pixels=MOST).decode()
        return
    pixels, facts = open_file(damaged, max_pixels=MOST).decode()
    np.testing.assert_array_equal(np.asarray(pixels), np.asarray(wanted))
    assert facts.orientation == wanted_facts.orientation
