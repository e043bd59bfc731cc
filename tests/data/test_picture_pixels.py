"""Decoding to pixels gives what `open_picture` gives, for each JPEG, and decodes the usual ones without Pillow."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from diptych.data import picture_pixels
from diptych.data.picture_pixels import open_pixels
from diptych.data.picture_safety import PictureError, open_picture

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
LAB = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()


def grainy(mode="RGB", size=(61, 45)):
    noise = np.random.default_rng(0).integers(0, 256, (size[1] // 4, size[0] // 4, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).convert(mode)


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def jpeg(mode="RGB", orientation=None, **options):
    file = io.BytesIO()
    if orientation is not None:
        options["exif"] = turned(orientation)
    grainy(mode).save(file, "JPEG", **options)
    return file.getvalue()


def with_segment(data, marker, body):
    return data[:2] + bytes([0xFF, marker]) + (2 + len(body)).to_bytes(2, "big") + body + data[2:]


USUAL = {
    "4:2:0": jpeg(),
    "4:2:2": jpeg(subsampling="4:2:2"),
    "4:4:4 of quality 100": jpeg(subsampling="4:4:4", quality=100),
    "progressive": jpeg(progressive=True),
    "grey": jpeg("L"),
    "with restarts": jpeg(restart_marker_blocks=3),
    "upright by EXIF": jpeg(orientation=1),
    "of sRGB by its profile": jpeg(icc_profile=SRGB),
    "with a comment, and bytes after its end": jpeg(comment=b"made by hand") + bytes(50),
}
OTHERS = {
    **{f"turned by EXIF, {turn}": jpeg(orientation=turn) for turn in range(2, 9)},
    "of CMYK": jpeg("CMYK"),
    "RGB without a transform": jpeg(keep_rgb=True),
    "grey with a profile": jpeg("L", icc_profile=SRGB),
    "with a profile of another space": jpeg(icc_profile=LAB),
    "two EXIF segments": with_segment(jpeg(orientation=3), 0xE1, turned(6).tobytes()),
}


def outcome(open_it, data):
    try:
        return np.asarray(open_it(data))
    except PictureError as error:
        return error.reason


@pytest.mark.parametrize("data", (USUAL | OTHERS).values(), ids=USUAL | OTHERS)
def test_the_pixels_are_those_of_pillow_bit_by_bit(data):
    pixels = open_pixels(data)
    assert pixels.dtype == np.uint8 and np.array_equal(pixels, open_picture(data))


@pytest.mark.parametrize("data", USUAL.values(), ids=USUAL)
def test_a_usual_jpeg_is_decoded_without_pillow(data, monkeypatch):
    monkeypatch.setattr(picture_pixels, "open_picture", None)
    assert open_pixels(data).shape == (45, 61, 3)


@pytest.mark.parametrize(("times", "scale"), [(1.9, 1), (2.0, 2), (3.9, 2), (4.0, 4), (30.0, 8)])
@pytest.mark.parametrize("data", USUAL.values(), ids=USUAL)
def test_a_usual_jpeg_larger_than_needed_is_decoded_smaller_as_pillow_does_it(data, times, scale):
    drafted = Image.open(io.BytesIO(data))
    drafted.draft("RGB", (61 // scale, 45 // scale))
    seen = []
    pixels = open_pixels(data, times_as_large=lambda *size: seen.append(size) or times)
    assert seen == [(61, 45)]
    assert pixels.shape == (-(-45 // scale), -(-61 // scale), 3)
    assert np.array_equal(pixels, drafted.convert("RGB"))


@pytest.mark.parametrize("name", [name for name in OTHERS if name.startswith(("turned", "of CMYK", "two EXIF"))])
def test_a_jpeg_that_needs_pillow_has_its_whole_size_however_large(name):
    data = OTHERS[name]
    assert np.array_equal(open_pixels(data, times_as_large=lambda *_: 8), open_picture(data))


@given(data=st.data())
@settings(max_examples=200, deadline=None)
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_a_damaged_jpeg_gives_the_same_pixels_or_the_same_refusal(data):
    changed = bytearray(data.draw(st.sampled_from([*USUAL.values(), *OTHERS.values()])))
    for bit in data.draw(st.lists(st.integers(0, 8 * len(changed) - 1), min_size=1, max_size=4)):
        changed[bit // 8] ^= 1 << bit % 8
    damaged = bytes(changed[: data.draw(st.integers(len(changed) // 2, len(changed)))])
    ours, pillows = outcome(open_pixels, damaged), outcome(open_picture, damaged)
    assert type(ours) is type(pillows) and np.array_equal(ours, pillows)
