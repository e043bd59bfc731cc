"""ICC profiles lead to sRGB, in open_picture too."""

import io
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms

from diptych.data import colour_profile
from diptych.data.picture_safety import check_picture, open_picture

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
# With the primaries of red and blue exchanged, red pixels mean blue.
EXCHANGED = SRGB.replace(b"rXYZ", b"????", 1).replace(b"bXYZ", b"rXYZ", 1).replace(b"????", b"bXYZ", 1)


def profile(space, tags, connection=b"XYZ "):
    """The smallest profile of a printer or scanner with these tags."""
    start = 128 + 4 + 12 * len(tags)
    table, bodies = struct.pack(">I", len(tags)), b""
    for name, body in tags.items():
        table += name + struct.pack(">II", start + len(bodies), len(body))
        bodies += body + b"\0" * (-len(body) % 4)
    head = struct.pack(">II", start + len(bodies), 0) + struct.pack(">I", 0x02400000) + b"prtr" + space + connection
    head += b"\0" * 12 + b"acsp" + b"\0" * 28 + struct.pack(">III", 0xF6D6, 0x10000, 0xD32D)
    return head.ljust(128, b"\0") + table + bodies


WHITE = b"XYZ " + struct.pack(">IIII", 0, 0xF6D6, 0x10000, 0xD32D)
LINEAR_GREY = profile(b"GRAY", {b"wtpt": WHITE, b"kTRC": b"curv\0\0\0\0\0\0\0\0"})
RAMP = bytes(range(256))
ALL_INK_IS_GREY = profile(
    b"CMYK",
    {
        b"wtpt": WHITE,
        b"A2B0": b"mft1\0\0\0\0\x04\x03\x02\0"
        + struct.pack(">9i", *(0x10000 * (i % 4 == 0) for i in range(9)))
        + RAMP * 4
        + bytes([128, 128, 128]) * 16
        + RAMP * 3,
    },
    b"Lab ",
)


def encoded(picture, format="PNG", **options):
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_colours_of_another_space_become_srgb(format):
    data = encoded(Image.new("RGB", (16, 16), "red"), format, icc_profile=EXCHANGED)
    red, green, blue = open_picture(data).getpixel((3, 3))
    assert red < 60 and green < 60 and blue > 190
    assert check_picture(data)[2] == format


def test_an_srgb_profile_changes_no_pixel():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8))
    assert colour_profile.is_srgb(SRGB) and not colour_profile.is_srgb(EXCHANGED)
    assert np.array_equal(open_picture(encoded(noise, icc_profile=SRGB)), noise)


def test_grey_has_profiles_too():
    for mode, colour in (("L", 55), ("LA", (55, 255))):
        data = encoded(Image.new(mode, (4, 4), colour), icc_profile=LINEAR_GREY)
        # 55 of 255, linear, is 128 in sRGB's curve (IEC 61966-2-1).
        assert np.abs(np.array(open_picture(data).getpixel((0, 0))) - 128).max() <= 2


def test_cmyk_follows_its_profile():
    data = encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95, icc_profile=ALL_INK_IS_GREY)
    assert np.ptp(open_picture(data).getpixel((0, 0))) <= 3


@pytest.mark.parametrize(
    "broken",
    [b"no profile", SRGB[:200], SRGB[:128] + b"\xff" * 400, LINEAR_GREY, ALL_INK_IS_GREY, SRGB + bytes(5 << 20)],
    ids=["text", "cut", "damaged", "of grey", "of CMYK", "huge"],
)
def test_a_profile_that_is_of_no_use_is_ignored(broken):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8))
    file = noise.copy()
    assert np.array_equal(colour_profile.to_srgb(file, broken), noise)
    assert colour_profile.is_srgb(broken)


def test_transparency_stays_white_under_a_profile():
    data = encoded(Image.new("RGBA", (4, 4), (255, 0, 0, 0)), icc_profile=EXCHANGED)
    assert open_picture(data).getpixel((0, 0)) == (255, 255, 255)


@given(changes=st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 255)), min_size=1, max_size=8))
def test_no_profile_breaks_a_picture(changes):
    broken = bytearray(EXCHANGED)
    for position, value in changes:
        broken[position % len(broken)] = value
    assert colour_profile.to_srgb(Image.new("RGB", (2, 2)), bytes(broken)).mode == "RGB"
