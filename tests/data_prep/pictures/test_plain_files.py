"""A plain WebP or PNG, read straight by its quickest decoder, is the picture that Pillow reads."""

import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from diptych.data.picture_safety import PictureError, PictureFile, open_picture
from diptych_shards.pictures.decode import PlainFile, open_file
from diptych_shards.pictures.picture import PictureOptions, process_picture
from tests.data_prep.made_pictures import encoded, scene

MOST = 10**6
EXIF = Image.Exif()
EXIF[0x0112], EXIF[0x010F] = 6, "Maker"
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
PROFILE = PROFILE.replace(b"rXYZ", b"????", 1).replace(b"bXYZ", b"rXYZ", 1).replace(b"????", b"bXYZ", 1)


def png(*chunks, width=61, height=37, kind=b"\x08\x02\0\0\0"):
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + kind
    written = ((b"IHDR", header), *chunks, (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(map(chunk, *zip(*written, strict=True)))


def chunk(name, content):
    return len(content).to_bytes(4, "big") + name + content + zlib.crc32(name + content).to_bytes(4, "big")


def webp_with_flags(flags, of="lossy with metadata"):
    return PLAIN[of][:20] + bytes([flags]) + PLAIN[of][21:]


def chunks_of(data):
    """Those between header and end."""
    position = 33
    while (name := data[position + 4 : position + 8]) != b"IEND":
        length = int.from_bytes(data[position : position + 4], "big")
        yield name, data[position + 8 : position + 8 + length]
        position += 12 + length


PIXELS = list(chunks_of(encoded(scene(61, 37), "PNG")))
((_, ONE_STREAM),) = PIXELS
TEXT, GAMMA = (b"tEXt", b"Software\0a camera"), (b"gAMA", (45455).to_bytes(4, "big"))
PLAIN = {
    "png": png(*PIXELS),
    "png with remarks": png(GAMMA, TEXT, (b"pHYs", bytes(9)), *PIXELS),
    "png in many chunks": png(*((b"IDAT", ONE_STREAM[at : at + 500]) for at in range(0, len(ONE_STREAM), 500))),
    "png of one row filter": encoded(scene(61, 37), "PNG", compress_level=0),
    "png of a single pixel": encoded(scene(1, 1), "PNG"),
    "png with bytes behind its end": png(*PIXELS) + b"PK\3\4",
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
    "png with a profile": encoded(scene(61, 37), "PNG", icc_profile=PROFILE),
    "png with EXIF": encoded(scene(61, 37), "PNG", exif=EXIF),
    "png with EXIF behind its pixels": png(*PIXELS, (b"eXIf", EXIF.tobytes().removeprefix(b"Exif\0\0"))),
    "png with a transparent colour": encoded(scene(61, 37), "PNG", transparency=(1, 2, 3)),
    "transparent png": encoded(SEE_THROUGH, "PNG"),
    "palette": encoded(scene(61, 37).quantize(), "PNG"),
    "grey": encoded(scene(61, 37).convert("L"), "PNG"),
    "animated png": encoded(scene(61, 37), "PNG", save_all=True, append_images=[scene(61, 37).rotate(180)]),
    "png without pixels": png(),
    "png with a wrong checksum of a remark": png(GAMMA, *PIXELS).replace(b"gAMA", b"cHRM", 1),
    "png in two parts": png((b"IDAT", ONE_STREAM[:500]), TEXT, (b"IDAT", ONE_STREAM[500:])),
    "png of no size": png(*PIXELS, width=0),
    "png cut": png(*PIXELS)[:-1],
    "transparent": encoded(SEE_THROUGH, "WEBP"),
    "transparent and lossless": encoded(SEE_THROUGH, "WEBP", lossless=True),
    "animated": encoded(scene(61, 37), "WEBP", save_all=True, append_images=[scene(61, 37).rotate(180)]),
    "webp with metadata that are not announced": webp_with_flags(0),
    "webp with a reserved flag": webp_with_flags(0x28 | 1),
    "webp with XMP that is not there": webp_with_flags(0x28 | 4),
    "cut": PLAIN["lossy"][:-1],
    "of no size": PLAIN["lossy"][:26] + b"\0\0" + PLAIN["lossy"][28:],
}


def by_pillow(data):
    return PictureFile(data, max_pixels=MOST).decode()


@pytest.mark.parametrize("data", PLAIN.values(), ids=PLAIN)
def test_a_plain_file_is_read_straight_to_the_pixels_and_facts_that_pillow_gives(data):
    file = open_file(data, max_pixels=MOST)
    assert isinstance(file, PlainFile)
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


@pytest.mark.parametrize("data", [PLAIN["lossy"], PLAIN["png"]])
def test_a_plain_file_of_too_many_pixels_is_refused_by_its_header(data):
    with pytest.raises(PictureError, match="61 x 37 pixels; at most 2000"):
        open_file(data, max_pixels=2000)


def test_a_png_is_taken_whose_chunks_have_their_checksums_and_whose_stream_has_not():
    pixels, _ = open_file(png((b"IDAT", ONE_STREAM[:-4] + bytes(4))), max_pixels=MOST).decode()
    np.testing.assert_array_equal(np.asarray(pixels), np.asarray(scene(61, 37)))


def test_such_a_png_is_not_stored_as_it_came():
    options = PictureOptions(resize_mode="no", encode_format="png", skip_reencode=True)
    whole, flawed = png(*PIXELS), png((b"IDAT", ONE_STREAM[:-4] + bytes(4)))
    assert process_picture(whole, options).data == whole
    np.testing.assert_array_equal(np.asarray(open_picture(process_picture(flawed, options).data)), scene(61, 37))


@pytest.mark.parametrize("data", PLAIN.values(), ids=PLAIN)
@given(changes=st.lists(st.tuples(st.integers(0, 2_000), st.integers(0, 255)), max_size=4), cut=st.integers(0, 60))
@settings(max_examples=60, deadline=None)
def test_a_damaged_plain_file_is_what_pillow_makes_of_it(data, changes, cut):
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
