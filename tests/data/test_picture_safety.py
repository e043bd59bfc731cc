import importlib.util
import io
import struct
import zlib

import numpy as np
import pillow_heif
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps

from diptych.data import picture_safety
from diptych.data.picture_formats import PICTURE_ENDINGS, PICTURE_FORMATS
from diptych.data.picture_pixels import open_pixels
from diptych.data.picture_safety import PictureError, PictureFile, PictureReason, check_picture
from diptych.data.shard_index_file import ALLOWED_SUFFIXES, PICTURE_SUFFIXES
from diptych.data.tiff_page import first_page
from diptych.errors import UserError

FORMATS = {
    "JPEG": {"format": "JPEG", "quality": 95},
    "progressive JPEG": {"format": "JPEG", "progressive": True},
    "PNG": {"format": "PNG"},
    "lossy WebP": {"format": "WEBP", "quality": 90},
    "lossless WebP": {"format": "WEBP", "lossless": True},
}
OTHERS = {
    "GIF": {"format": "GIF"},
    "BMP": {"format": "BMP"},
    "AVIF": {"format": "AVIF", "quality": 90},
    "HEIC": {"format": "HEIC"},
    "TIFF": {"format": "TIFF"},
    "TIFF with LZW": {"format": "TIFF", "compression": "tiff_lzw"},
    "TIFF with deflate": {"format": "TIFF", "compression": "tiff_adobe_deflate"},
    "TIFF with JPEG": {"format": "TIFF", "compression": "jpeg"},
}
every_format = pytest.mark.parametrize("options", FORMATS.values(), ids=FORMATS)


def noise(mode="RGB", size=(40, 30)):
    channels = len(Image.new(mode, (1, 1)).getbands())
    shape = (size[1], size[0], channels) if channels > 1 else (size[1], size[0])
    return Image.frombytes(mode, size, np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8).tobytes())


def encoded(picture, **options):
    file = io.BytesIO()
    if options["format"] == "HEIC":
        pillow_heif.from_pillow(picture).save(file)
    else:
        picture.save(file, **options)
    return file.getvalue()


def pixel(picture, x=0, y=0):
    return picture.getpixel((x, y))


@pytest.fixture(scope="module", params=["as a picture", "as pixels"], autouse=True)
def way(request):
    """Runs every test with each of the two ways to open a picture, which promise the same."""
    global open_as_pixels
    open_as_pixels = request.param == "as pixels"


def open_picture(data, **limits):
    if open_as_pixels:
        return Image.fromarray(open_pixels(data, **limits))
    return picture_safety.open_picture(data, **limits)


def reason_of(data, open_it=open_picture, **limits):
    with pytest.raises(PictureError) as caught:
        open_it(data, **limits)
    return caught.value.reason


def png_header(width, height, bits=8, colour=2):
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))


# -- what comes out -----------------------------------------------------------------------------------


@every_format
def test_a_picture_opens_as_pillow_decodes_it(options):
    data = encoded(noise(), **options)
    assert np.array_equal(open_picture(data), Image.open(io.BytesIO(data)).convert("RGB"))
    assert check_picture(data) == (40, 30, options["format"])


def blocks():
    """A picture of large flat blocks, which every encoder keeps nearly as they are."""
    colours = np.random.default_rng(1).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(colours.repeat(32, axis=0).repeat(32, axis=1))


@pytest.mark.parametrize("options", OTHERS.values(), ids=OTHERS)
def test_every_other_format_of_the_table_opens(options):
    data = encoded(blocks(), **options)
    assert check_picture(data) == (128, 96, options["format"])
    assert np.abs(np.asarray(open_picture(data), int) - np.asarray(blocks())).mean() < 8
    for cut in range(len(data) // 7, len(data), len(data) // 7):
        assert reason_of(data[:cut]) in (PictureReason.TRUNCATED, PictureReason.DECODE_ERROR)
    with pytest.raises(PictureError):
        open_picture(data, max_pixels=128 * 96 - 1)


def test_each_format_has_a_decoder_and_endings_of_its_own():
    tried = {options["format"] for options in (FORMATS | OTHERS).values()}
    assert tried == set(PICTURE_FORMATS) and len(PICTURE_ENDINGS) == len(set(PICTURE_ENDINGS))
    assert {ending[1:] for ending in PICTURE_ENDINGS} == set(PICTURE_SUFFIXES) <= set(ALLOWED_SUFFIXES)


def test_a_picture_whose_decoder_is_missing_is_refused_with_the_way_to_get_it(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pillow_heif" else find_spec(name))
    with pytest.raises(PictureError, match=r"pip install 'diptych\[heic\]'") as refused:
        open_picture(encoded(blocks(), format="HEIC"))
    assert refused.value.reason is PictureReason.FORMAT_NOT_ALLOWED


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "I;16", "I"])
def test_every_tiff_mode_comes_out_as_rgb(mode):
    grey = mode not in ("P", "RGBA", "CMYK")
    picture = blocks().convert("L") if grey else blocks()
    deep = Image.fromarray(np.asarray(picture, np.uint16) * 257) if mode.startswith("I") else picture
    opened = np.asarray(open_picture(encoded(deep.convert(mode), format="TIFF")), int)
    expected = picture.convert(mode).convert("RGB") if mode in ("1", "P") else picture.convert("RGB")
    assert np.abs(opened - np.asarray(expected)).max() <= 1


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_a_tiff_is_turned_upright(orientation, compression):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(noise(), format="TIFF", exif=exif, compression=compression)
    turned = {1: noise(), 3: noise().rotate(180), 6: noise().rotate(-90, expand=True)}[orientation]
    assert np.array_equal(open_picture(data), turned) and check_picture(data)[:2] == turned.size


def test_of_the_pages_of_a_tiff_only_the_first_is_read():
    pages = [noise(), Image.new("RGB", (7, 7), "red"), Image.new("RGB", (7, 7), "blue")]
    data = encoded(pages[0], format="TIFF", save_all=True, append_images=pages[1:])
    assert np.array_equal(open_picture(data), noise())
    (first,) = struct.unpack_from("<I", data, 4)
    (num_tags,) = struct.unpack_from("<H", data, first)
    # A chain of a hundred thousand pages without a tag, which Pillow would follow.
    link = first + 2 + 12 * num_tags
    chain = b"".join(struct.pack("<HI", 0, len(data) + 6 * n + 6) for n in range(100_000)) + bytes(6)
    long = data[:link] + struct.pack("<I", len(data)) + data[link + 4 :] + chain
    assert np.array_equal(open_picture(long), noise())


def test_floats_are_grey_where_255_is_white():
    assert np.array_equal(open_picture(encoded(noise("L").convert("F"), format="TIFF")), noise("L").convert("RGB"))


def test_a_tiff_of_very_many_pieces_or_in_floats_of_unknown_white_is_refused():
    pixel_rows = Image.new("L", (1, 120_000))
    assert reason_of(encoded(pixel_rows, format="TIFF", tiffinfo={278: 1})) is PictureReason.DECODE_ERROR
    for scale in (1 / 255, 257):
        floats = Image.fromarray(np.asarray(noise("L"), dtype=np.float32) * np.float32(scale))
        assert reason_of(encoded(floats, format="TIFF")) is PictureReason.DECODE_ERROR


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "I;16"])
def test_every_png_mode_comes_out_as_rgb(mode):
    picture = Image.new(mode, (5, 4))
    assert open_picture(encoded(picture, format="PNG")).mode == "RGB"
    assert check_picture(encoded(picture, format="PNG")) == (5, 4, "PNG")


def test_cmyk_is_converted():
    red = encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), format="JPEG", quality=95)
    assert np.allclose(pixel(open_picture(red)), (255, 0, 0), atol=6)


@pytest.mark.parametrize("value, expected", [(0, 0), (257 * 115, 115), (65535, 255), (300, 1), (256, 1)])
def test_sixteen_bit_grey_is_scaled_and_not_clipped(value, expected):
    grey = Image.fromarray(np.full((4, 4), value, dtype=np.uint16))
    assert pixel(open_picture(encoded(grey, format="PNG"))) == (expected,) * 3


def test_sixteen_bit_colour_is_scaled_and_not_clipped():
    row = b"\0" + struct.pack(">HHH", 257 * 10, 257 * 115, 65535) * 2
    body = b"IDAT" + zlib.compress(row * 2)
    end = b"\0\0\0\0IEND\xaeB`\x82"
    data = png_header(2, 2, 16) + struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body)) + end
    assert pixel(open_picture(data)) == (10, 115, 255)


def png_chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def made_png(bits, colours, row, *chunks):
    """One row of numbers of so many bits."""
    width = len(row) // (3 if colours == 2 else 1)
    packed = "".join(f"{value:0{bits}b}" for value in row)
    line = int(packed.ljust(-(-len(packed) // 8) * 8, "0"), 2).to_bytes(-(-len(packed) // 8), "big")
    body = png_chunk(b"IDAT", zlib.compress(b"\0" + line)) + png_chunk(b"IEND", b"")
    return png_header(width, 1, bits, colours) + b"".join(chunks) + body


@pytest.mark.parametrize(
    ("bits", "row", "key", "expected"),
    [
        (1, [0, 1, 0], 0, [255, 255, 255]),
        (1, [0, 1, 0], 1, [0, 255, 0]),
        (2, [0, 1, 3], 1, [0, 255, 255]),
        (4, [0, 5, 15], 5, [0, 255, 255]),
        (8, [0, 5, 15], 5, [0, 255, 15]),
        (16, [0, 5 * 257, 5 * 257 + 1], 5 * 257, [0, 255, 5]),
    ],
)
def test_a_transparent_grey_of_any_depth_shows_white_and_no_other(bits, row, key, expected):
    opened = open_picture(made_png(bits, 0, row, png_chunk(b"tRNS", struct.pack(">H", key))))
    assert [pixel(opened, x) for x in range(3)] == [(value,) * 3 for value in expected]


def test_a_transparent_colour_of_16_bits_shows_white_and_its_neighbour_does_not():
    row = [30_000, 0, 900, 30_000, 0, 901, 7, 0, 0]
    opened = open_picture(made_png(16, 2, row, png_chunk(b"tRNS", struct.pack(">HHH", 30_000, 0, 900))))
    assert pixel(opened) == (255, 255, 255) and pixel(opened, 1) == (30_000 >> 8, 0, 901 >> 8)


@pytest.mark.parametrize("open_it", [open_picture, check_picture])
@pytest.mark.parametrize("place", ["before", "after"])
def test_much_text_and_huge_or_broken_profiles_of_a_png_are_passed_over(place, open_it):
    much = zlib.compress(bytes(100 << 20))
    data = encoded(noise(), format="PNG")
    for extra in (
        png_chunk(b"zTXt", b"workflow\0\0" + much),
        png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + much),
        png_chunk(b"tEXt", b"workflow\0" + bytes(2 << 20)),
        png_chunk(b"tEXt", b"a\0b") * 10_000,
        png_chunk(b"iCCP", b"scanner\0\0" + much),
        png_chunk(b"iCCP", b"scanner\0\0no stream"),
    ):
        at = 33 if place == "before" else -12
        assert np.array_equal(open_picture(data[:at] + extra + data[at:]), noise())
        open_it(data[:at] + extra + data[at:])


def test_a_profile_of_a_png_up_to_its_limit_is_used():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = encoded(noise(), format="PNG", icc_profile=profile + bytes(3 << 20))
    assert PictureFile(data).load().info["icc_profile"][:128] == profile[:128]


@pytest.mark.parametrize("options", [{"format": "PNG"}, {"format": "WEBP", "lossless": True}])
@pytest.mark.parametrize("alpha, expected", [(0, (255, 255, 255)), (255, (0, 0, 200)), (51, (204, 204, 244))])
def test_transparency_shows_white(options, alpha, expected):
    data = encoded(Image.new("RGBA", (4, 4), (0, 0, 200, alpha)), **options)
    assert pixel(open_picture(data)) == expected


def test_a_transparent_colour_of_a_palette_or_of_rgb_shows_white():
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    assert pixel(open_picture(encoded(palette, format="PNG"))) == (40, 50, 60)
    assert pixel(open_picture(encoded(palette, format="PNG", transparency=1))) == (255, 255, 255)
    rgb = Image.new("RGB", (4, 4), (1, 2, 3))
    assert pixel(open_picture(encoded(rgb, format="PNG", transparency=(1, 2, 3)))) == (255, 255, 255)
    grey = Image.new("L", (4, 4), 7)
    assert pixel(open_picture(encoded(grey, format="PNG", transparency=7))) == (255, 255, 255)


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("options", [{"format": "JPEG"}, {"format": "PNG"}, {"format": "WEBP", "lossless": True}])
def test_exif_orientation_is_applied_to_pixels_and_size(options, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(noise(), exif=exif, **options)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert np.array_equal(open_picture(data), upright)
    assert check_picture(data)[:2] == upright.size


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0II*\0\x08\0\0\0\xff\xff"])
def test_broken_exif_does_no_harm(exif):
    data = encoded(noise(), format="PNG", exif=exif)
    assert open_picture(data).size == (40, 30)


@pytest.mark.parametrize("options", [{"format": "PNG"}, {"format": "WEBP", "lossless": True}])
def test_of_an_animation_the_first_frame_counts(options):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    data = encoded(frames[0], save_all=True, append_images=frames[1:], **options)
    assert pixel(open_picture(data)) == (255, 0, 0)


def test_a_jpeg_with_a_second_picture_behind_it_is_a_jpeg():
    data = encoded(noise(), format="MPO", save_all=True, append_images=[noise()])
    assert check_picture(data) == (40, 30, "JPEG")


@pytest.mark.parametrize(
    ("format", "resized", "decoded"),
    [
        ("JPEG", (160, 120), (401, 301)),
        ("JPEG", (161, 120), (801, 601)),
        ("JPEG", (80, 60), (201, 151)),
        ("JPEG", (4, 3), (101, 76)),
        ("PNG", (4, 3), (801, 601)),
    ],
)
def test_a_jpeg_is_decoded_smaller_where_that_leaves_two_and_a_half_times_what_it_becomes(format, resized, decoded):
    data = encoded(noise(size=(801, 601)), format=format)
    picture, facts = PictureFile(data).decode(resized)
    factor = round(801 / decoded[0])
    assert (picture.size, facts.covered) == (decoded, (801 / factor, 601 / factor))


# -- what is refused ----------------------------------------------------------------------------------


@every_format
@pytest.mark.parametrize("tenths", range(1, 10))
@pytest.mark.parametrize("open_it", [open_picture, check_picture])
def test_a_truncated_picture_is_refused_at_every_tenth(options, tenths, open_it):
    data = encoded(noise(), **options)
    assert reason_of(data[: len(data) * tenths // 10], open_it) is PictureReason.TRUNCATED


@every_format
@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_no_cut_is_taken_for_a_picture(options, data):
    whole = encoded(noise(), **options)
    with pytest.raises(PictureError):
        check_picture(whole[: data.draw(st.integers(0, len(whole) - 1))])


@every_format
@given(data=st.data())
@settings(max_examples=30, deadline=None)
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_flipped_bits_are_refused_or_decoded_and_nothing_else(options, data):
    changed = bytearray(encoded(noise(), **options))
    for bit in data.draw(st.lists(st.integers(0, 8 * len(changed) - 1), min_size=1, max_size=4)):
        changed[bit // 8] ^= 1 << bit % 8
    try:
        assert open_picture(bytes(changed)).mode == "RGB"
    except PictureError:
        pass


def test_a_png_with_a_flipped_bit_is_refused_when_checked_even_where_the_decoder_is_content():
    data = encoded(Image.new("RGB", (60, 60), "red"), format="PNG")
    num_content = 0
    for position in range(data.index(b"IDAT") + 6, data.index(b"IEND") - 4):
        changed = data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]
        assert reason_of(changed, check_picture) in (PictureReason.DECODE_ERROR, PictureReason.TRUNCATED)
        try:
            num_content += not np.array_equal(open_picture(changed), open_picture(data))
        except PictureError:
            pass
    assert num_content > 0


@pytest.mark.parametrize("open_it", [open_picture, check_picture])
def test_a_bomb_is_refused_by_its_header(open_it):
    bomb = png_header(30_000, 30_000) + b"\0\0\0\0IEND\xaeB`\x82"
    assert reason_of(bomb, open_it) is PictureReason.TOO_MANY_PIXELS
    assert reason_of(png_header(2**31 - 1, 2**31 - 1) + bomb[-12:], open_it) is PictureReason.TOO_MANY_PIXELS
    assert reason_of(encoded(noise(), format="JPEG"), open_it, max_pixels=1199) is PictureReason.TOO_MANY_PIXELS
    open_it(encoded(noise(), format="JPEG"), max_pixels=1200)


@pytest.mark.parametrize("open_it", [open_picture, check_picture])
def test_a_jpeg_of_many_scans_is_refused_by_scans_times_pixels(open_it, monkeypatch):
    data = encoded(noise(), format="JPEG", progressive=True)
    scans = data.count(b"\xff\xda")
    last = data[data.rindex(b"\xff\xda") : -2]
    assert reason_of(data[:-2] + last * (101 - scans) + b"\xff\xd9", open_it) is PictureReason.DECODE_ERROR
    open_it(data[:-2] + last * (99 - scans) + b"\xff\xd9")
    monkeypatch.setattr(picture_safety, "MAX_SCANNED_PIXELS", scans * 1200)  # 40 x 30 pixels
    open_it(data)
    assert reason_of(data[:-2] + last + b"\xff\xd9", open_it) is PictureReason.DECODE_ERROR


def with_other_size(name):
    """A file whose outer size is 64 x 64, with a larger one inside."""
    large = Image.new("RGB", (1250, 1000), "red")
    if name == "WEBP":
        frame = encoded(large, format="WEBP")[12:]
        canvas = b"VP8X\x0a\0\0\0" + bytes(4) + (63).to_bytes(3, "little") * 2
        return b"RIFF" + (4 + len(canvas + frame)).to_bytes(4, "little") + b"WEBP" + canvas + frame
    if name == "GIF":
        data = encoded(large, format="GIF")
        return data[:6] + struct.pack("<HH", 64, 64) + data[10:]
    if name == "JPEG":
        data, small = encoded(large, format="JPEG"), encoded(large.resize((64, 64)), format="JPEG")
        at, start = data.index(b"\xff\xc0"), small.index(b"\xff\xc0")
        return data[:at] + small[start : start + 19] + data[at:]
    tags = [(256, 64), (257, 64), (258, 8), (259, 8), (262, 1), (277, 1), (322, 60_000), (323, 60_000), (324, 200)]
    tags.append((325, 100))
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    head = b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4)
    return head.ljust(200, b"\0") + zlib.compress(bytes(60_000)).ljust(100, b"\0")


@pytest.mark.parametrize("name", ["WEBP", "GIF", "JPEG", "TIFF"])
@pytest.mark.parametrize("open_it", [open_picture, check_picture])
def test_a_frame_or_tile_larger_than_its_picture_is_refused_before_it_is_decoded(name, open_it):
    reason = reason_of(with_other_size(name), open_it, max_pixels=1_000_000)
    is_known = name in ("GIF", "JPEG")  # to Pillow; the others are refused by their decoders
    assert reason is (PictureReason.TOO_MANY_PIXELS if is_known else PictureReason.DECODE_ERROR)


def test_a_tiff_whose_tiles_are_larger_than_any_picture_never_reaches_its_decoder():
    with pytest.raises(UserError, match="tiles of 60000 x 60000 pixels"):
        first_page(with_other_size("TIFF"))


def test_a_small_side_is_refused_where_asked():
    strip = encoded(Image.new("RGB", (1, 500)), format="PNG")
    assert check_picture(strip) == (1, 500, "PNG")
    assert reason_of(strip, check_picture, min_side=2) is PictureReason.TOO_SMALL


@pytest.mark.parametrize("name", ["PPM", "ICO", "JPEG2000"])
def test_other_formats_never_reach_their_decoder(name):
    reason = reason_of(encoded(noise(), format=name))
    assert reason is (PictureReason.NOT_A_PICTURE if name == "PPM" else PictureReason.FORMAT_NOT_ALLOWED)


@pytest.mark.parametrize(
    "data, reason",
    [
        (b"", PictureReason.NOT_A_PICTURE),
        (b"<!DOCTYPE html><html>", PictureReason.NOT_A_PICTURE),
        (
            b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>',
            PictureReason.FORMAT_NOT_ALLOWED,
        ),
        (b"%!PS-Adobe-3.0 EPSF-3.0", PictureReason.FORMAT_NOT_ALLOWED),
        (b"\0\0\0\x1cftypavif", PictureReason.TRUNCATED),
        (b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom", PictureReason.FORMAT_NOT_ALLOWED),
        (b"II*\0", PictureReason.TRUNCATED),
        (b"\xff\xd8\xff", PictureReason.TRUNCATED),
        (b"\x89PNG\r\n\x1a\n", PictureReason.TRUNCATED),
        (b"RIFF\x08\0\0\0WEBPVP8 ", PictureReason.DECODE_ERROR),
    ],
)
def test_files_that_are_no_pictures_are_refused_with_a_reason(data, reason):
    assert reason_of(data) is reason
