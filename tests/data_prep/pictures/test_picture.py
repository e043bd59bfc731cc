"""Fetched pictures become stored ones."""

import io
import json
import math
import pickle
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from diptych.data.picture_formats import MAX_PIXELS
from diptych.data.picture_safety import PictureError, PictureReason, open_picture
from diptych_shards.pictures.encode import ENCODINGS
from diptych_shards.pictures.picture import IMG2DATASET_MESSAGES, PictureOptions, for_training, process_picture
from tests.data_prep.made_pictures import encoded, opened, psnr, scene

AS_IT_IS = {"resize_mode": "no", "encode_format": "png", "encode_quality": 1}


KEEP = {"resize_mode": "no", "skip_reencode": True}
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
RED_MEANS_BLUE = SRGB.replace(b"rXYZ", b"????", 1).replace(b"bXYZ", b"rXYZ", 1).replace(b"????", b"bXYZ", 1)


def processed(data, boxes=None, **options):
    return process_picture(data, PictureOptions(**options), boxes)


def pixels(data, boxes=None, **options):
    return np.asarray(opened(processed(data, boxes, **AS_IT_IS | options).data))


def reason_of(data, boxes=None, **options):
    with pytest.raises(PictureError) as caught:
        processed(data, boxes, **options)
    return caught.value.reason


def with_orientation(orientation, **others):
    exif = Image.Exif()
    exif[0x0112] = orientation
    for tag, value in others.items():
        exif[int(tag[1:], 16)] = value
    return exif


# -- sizes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mode, only_if_bigger, size, expected",
    [
        ("no", False, (400, 300), (400, 300)),
        ("border", False, (400, 300), (100, 100)),
        ("border", False, (60, 40), (100, 100)),
        ("border", True, (60, 40), (60, 40)),
        ("keep_ratio", False, (400, 300), (133, 100)),
        ("keep_ratio", False, (60, 40), (150, 100)),
        ("keep_ratio", True, (60, 40), (60, 40)),
        ("keep_ratio", True, (60, 140), (60, 140)),
        ("keep_ratio_largest", False, (400, 300), (100, 75)),
        ("keep_ratio_largest", False, (40, 60), (67, 100)),
        ("keep_ratio_largest", True, (40, 140), (29, 100)),
        ("center_crop", False, (400, 300), (100, 100)),
        ("center_crop", False, (60, 40), (100, 100)),
        ("center_crop", True, (60, 40), (60, 40)),
    ],
)
def test_the_modes_make_the_sizes_of_img2dataset(mode, only_if_bigger, size, expected):
    stored = processed(encoded(scene(*size)), resize_mode=mode, image_size=100, resize_only_if_bigger=only_if_bigger)
    assert (stored.width, stored.height) == opened(stored.data).size == expected
    assert (stored.original_width, stored.original_height) == size


def test_padding_is_white_and_centred():
    square = pixels(encoded(Image.new("RGB", (200, 100), "red")), resize_mode="border", image_size=100)
    assert (square[:25] == 255).all() and (square[75:] == 255).all()
    assert np.abs(square[25:75].astype(int) - (255, 0, 0)).max() < 3


def test_the_middle_is_cropped():
    thirds = np.zeros((100, 300, 3), np.uint8)
    thirds[:, 100:200] = 255
    middle = pixels(encoded(Image.fromarray(thirds), "PNG"), resize_mode="center_crop", image_size=100)
    assert (middle == 255).all()


@pytest.mark.parametrize("size", [(100, 75), (333, 250), (640, 480)])
def test_resizing_is_pillows_antialiased_bicubic(size):
    data = encoded(scene())
    expected = opened(data).resize(size, Image.Resampling.BICUBIC)
    assert psnr(pixels(data, resize_mode="keep_ratio_largest", image_size=size[0]), expected) > 55


@pytest.mark.parametrize("mode", ["border", "keep_ratio_largest"])
def test_a_side_that_would_vanish_is_refused(mode):
    assert reason_of(encoded(Image.new("RGB", (5000, 1)), "PNG"), resize_mode=mode) is PictureReason.TOO_SMALL


def test_the_filters_apply_to_the_original_size():
    data = encoded(scene(400, 100))
    assert reason_of(data, min_image_size=101) is PictureReason.TOO_SMALL
    assert reason_of(data, max_image_area=39_999) is PictureReason.AREA_TOO_LARGE
    assert reason_of(data, max_aspect_ratio=3.9) is PictureReason.ASPECT_RATIO_TOO_LARGE
    assert reason_of(data, max_pixels=39_999) is PictureReason.TOO_MANY_PIXELS
    processed(data, min_image_size=100, max_image_area=40_000, max_aspect_ratio=4, max_pixels=40_000)


def test_every_reason_has_a_message_for_the_status_table():
    assert set(IMG2DATASET_MESSAGES) == set(PictureReason)


@pytest.mark.parametrize(
    ("mode", "size"),
    [("RGB", (1000, 752)), ("L", (1001, 753)), ("RGB", (1005, 757)), ("L", (1007, 759)), ("RGB", (1007, 759))],
)
def test_a_picture_that_is_decoded_smaller_is_not_shifted(size, mode):
    picture = scene(*size).convert(mode)
    for times in (5.4, 10.7, 21.5):
        options = {"resize_mode": "keep_ratio", "image_size": round(size[1] / times), "encode_format": "png"}
        reduced = pixels(encoded(picture), **options)
        whole = opened(encoded(picture)).convert("RGB")
        assert psnr(reduced, whole.resize(reduced.shape[1::-1], Image.Resampling.BICUBIC)) > 47


# -- formats ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ENCODINGS)
def test_every_encoding_holds_the_picture(suffix):
    stored = processed(encoded(scene()), resize_mode="no", encode_format=suffix)
    assert (stored.suffix, opened(stored.data).format) == (suffix, ENCODINGS[suffix])
    assert psnr(opened(stored.data).convert("RGB"), scene()) > 30


def test_quality_makes_the_difference_between_small_and_good():
    for suffix, low, high in (("jpg", 50, 95), ("webp", 50, 95), ("avif", 50, 95), ("png", 9, 0)):
        sizes = [
            len(processed(encoded(scene()), encode_format=suffix, encode_quality=quality).data)
            for quality in (low, high)
        ]
        assert sizes[0] < sizes[1] * 0.8, suffix


def test_the_jpeg_is_baseline_with_colours_at_half_the_size():
    stored = process_picture(encoded(scene(), progressive=True, subsampling=0), for_training(224))
    assert (stored.width, stored.height) == (299, 224)
    picture = opened(stored.data)
    assert "progressive" not in picture.info and picture.layer[0][1:3] == (2, 2)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_every_allowed_format_is_read(format):
    assert processed(encoded(scene(), format)).original_width == 400


@pytest.mark.parametrize("format", ["ICO", "JPEG2000"])
def test_no_other_format_is_read(format):
    assert reason_of(encoded(scene(64, 64), format)) is PictureReason.FORMAT_NOT_ALLOWED


def test_a_bmp_that_skips_lines_is_refused_before_its_zeros_are_made():
    width, skip = 50_000_000, b"\0\2\0\xff"
    header = struct.pack("<IiiHHIIiiII", 40, width, 1, 1, 8, 1, len(skip), 0, 0, 256, 0)
    start = 14 + len(header) + 1024
    bomb = struct.pack("<2sIHHI", b"BM", start + len(skip), 0, 0, start) + header + bytes(1024) + skip
    assert reason_of(bomb) is PictureReason.FORMAT_NOT_ALLOWED


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA"])
def test_a_bmp_of_every_mode_shows_what_pillow_decodes(mode):
    data = encoded(scene(33, 20).convert(mode), "BMP")
    assert np.array_equal(pixels(data), np.asarray(opened(data).convert("RGB")))


def test_the_first_frame_of_an_animation_is_stored():
    frames = [Image.new("RGB", (40, 30), colour) for colour in ("red", "green", "blue")]
    for format in ("GIF", "PNG", "WEBP"):
        data = encoded(frames[0], format, save_all=True, append_images=frames[1:])
        first = pixels(data, skip_reencode=True)
        assert np.abs(first.astype(int) - (255, 0, 0)).max() < 6, format


def test_transparency_is_white_and_sixteen_bits_are_scaled():
    clear = Image.new("RGBA", (40, 30), (0, 0, 0, 0))
    for format in ("PNG", "WEBP"):
        assert (pixels(encoded(clear, format)) == 255).all()
    palette = Image.new("P", (40, 30), 0)
    assert (pixels(encoded(palette, "GIF", transparency=0)) == 255).all()
    assert (pixels(encoded(Image.new("LA", (40, 30), (9, 0)), "PNG")) == 255).all()
    deep = Image.fromarray(np.full((30, 40), 115 * 257, np.uint16))
    assert (pixels(encoded(deep, "PNG")) == 115).all()


def test_cmyk_comes_out_in_its_colours():
    red = encoded(Image.new("CMYK", (40, 30), (0, 255, 255, 0)))
    assert np.abs(pixels(red).astype(int) - (255, 0, 0)).max() < 6


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_colours_of_another_space_become_srgb_and_no_profile_is_stored(format):
    data = encoded(Image.new("RGB", (40, 30), "red"), format, icc_profile=RED_MEANS_BLUE)
    for suffix in ("jpg", "png", "webp"):
        stored = opened(processed(data, encode_format=suffix, **KEEP).data)
        red, green, blue = stored.convert("RGB").getpixel((20, 15))
        assert red < 60 and green < 60 and blue > 190 and "icc_profile" not in stored.info


def test_grey_comes_out_as_rgb():
    assert np.array_equal(pixels(encoded(scene().convert("L"))), opened(encoded(scene().convert("L"))).convert("RGB"))


@pytest.mark.parametrize("suffix", ENCODINGS)
def test_training_reads_whatever_is_stored(suffix):
    for picture in (scene(), scene().convert("L"), scene(2, 300)):
        for mode in ("no", "keep_ratio"):
            stored = processed(encoded(picture, "PNG"), encode_format=suffix, resize_mode=mode, image_size=64)
            assert open_picture(stored.data).size == (stored.width, stored.height)


@pytest.mark.parametrize(("mode", "image_size"), [("keep_ratio", 800), ("center_crop", 800), ("border", 10_001)])
def test_a_picture_that_would_be_enlarged_over_the_limit_is_refused_before_it_is_made(mode, image_size):
    strip = encoded(Image.new("RGB", (4, 1000)), "PNG")
    assert reason_of(strip, resize_mode=mode, image_size=image_size) is PictureReason.TOO_MANY_PIXELS


def test_a_stored_file_that_no_shard_holds_is_refused(monkeypatch):
    monkeypatch.setattr("diptych_shards.pictures.picture.MAX_MEMBER_BYTES", 3 * 100 * 100)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (100, 100, 3), dtype=np.uint8))
    options = {"resize_mode": "no", "encode_format": "png", "encode_quality": 0}
    assert reason_of(encoded(noise, "BMP"), **options) is PictureReason.ENCODE_ERROR


def test_the_largest_sides_of_a_format_are_respected():
    for suffix, side in (("jpg", 65_501), ("webp", 16_384), ("avif", 65_537)):
        strip = encoded(Image.new("RGB", (side, 2)), "PNG")
        assert reason_of(strip, resize_mode="no", encode_format=suffix) is PictureReason.ENCODE_ERROR
        processed(strip, resize_mode="no", encode_format="png")


@pytest.mark.parametrize(
    "options",
    [
        {"resize_mode": "stretch"},
        {"encode_format": "gif"},
        {"encode_format": "png", "encode_quality": 95},
        {"encode_quality": 101},
        {"image_size": 0},
        {"min_image_size": -1},
        {"max_image_area": math.nan},
        {"max_aspect_ratio": math.nan},
        {"max_aspect_ratio": 0.5},
        {"max_pixels": -5},
        {"max_pixels": MAX_PIXELS + 1},
    ],
)
def test_options_that_make_no_sense_are_refused_by_name(options):
    with pytest.raises(ValueError, match=list(options)[-1]):
        PictureOptions(**options)


def test_options_travel_between_processes():
    assert pickle.loads(pickle.dumps(for_training(224))) == for_training(224)


# -- orientation and EXIF -----------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_pictures_and_their_sizes_are_upright(orientation, format):
    data = encoded(scene(80, 60), format, exif=with_orientation(orientation))
    expected = ImageOps.exif_transpose(opened(data).convert("RGB"))
    stored = processed(data, **AS_IT_IS)
    assert np.array_equal(opened(stored.data), expected)
    assert (stored.original_width, stored.original_height) == expected.size == (stored.width, stored.height)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_turn_with_the_orientation(orientation):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8))
    data = encoded(noise, "PNG", exif=with_orientation(orientation))
    # A white picture with a black rectangle in place of the box, turned by Pillow, shows where the box must be.
    marker = Image.new("L", (80, 60), 255)
    marker.paste(0, (4, 6, 24, 21))
    marker.getexif()[0x0112] = orientation
    where = np.asarray(ImageOps.exif_transpose(marker)) == 0
    plain, blurred = pixels(data), pixels(data, [[4 / 80, 6 / 60, 24 / 80, 21 / 60]])
    changed = np.abs(plain.astype(int) - blurred).max(axis=2) > 0
    assert changed[where].mean() > 0.95
    assert changed[~where].mean() < 0.35


def test_no_stored_picture_has_exif():
    exif = with_orientation(6, x010F="Maker", x8298="Somebody")
    for suffix, format in ENCODINGS.items():
        data = encoded(scene(80, 60), exif=exif)
        dropped = opened(processed(data, encode_format=suffix).data)
        assert dropped.format == format and not dropped.getexif()


def test_exif_is_written_as_img2dataset_writes_it():
    stored = processed(encoded(scene(), exif=with_orientation(6, x010F="Maker")))
    assert json.loads(stored.exif) == {"Image Make": "Maker", "Image Orientation": "Rotated 90 CW"}
    assert processed(encoded(scene())).exif == "{}"
    assert processed(encoded(scene()), read_exif=False).exif is None


# -- bytes that are kept ------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_bytes_are_kept_where_nothing_changes(suffix):
    data = encoded(scene(), ENCODINGS[suffix])
    assert processed(data, encode_format=suffix, **KEEP).data == data
    assert processed(data, encode_format=suffix, resize_mode="no").data != data or suffix == "png"
    small = {"resize_mode": "keep_ratio", "image_size": 300, "skip_reencode": True}
    assert processed(data, encode_format=suffix, **small).data == data


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_kept_bytes_are_the_picture_and_nothing_else(suffix):
    exif = with_orientation(1, x8298="Somebody")
    options = {"comment": b"hello"} if suffix == "jpg" else {}
    data = encoded(scene(), ENCODINGS[suffix], exif=exif, **options) + b"PK\3\4 an archive behind the picture"
    stored = processed(data, encode_format=suffix, **KEEP).data
    assert b"Somebody" not in stored and b"archive" not in stored and b"hello" not in stored
    assert np.array_equal(opened(stored), opened(data))


def test_a_progressive_jpeg_of_many_scans_is_kept_whole():
    data = encoded(scene(), progressive=True)
    assert processed(data, **KEEP).data == data


@pytest.mark.parametrize(
    "format, picture, options",
    [
        ("JPEG", scene(40, 30), {"exif": with_orientation(3)}),
        ("JPEG", scene(40, 30).convert("CMYK"), {}),
        ("PNG", scene(40, 30).convert("RGBA"), {}),
        ("PNG", scene(40, 30).convert("P"), {}),
        ("PNG", Image.new("RGB", (40, 30), (1, 2, 3)), {"transparency": (1, 2, 3)}),
        ("WEBP", Image.new("RGBA", (40, 30), (9, 9, 9, 100)), {}),
    ],
)
def test_bytes_are_not_kept_where_a_plain_reader_would_see_something_else(format, picture, options):
    data = encoded(picture, format, **options)
    suffix = {name: suffix for suffix, name in ENCODINGS.items()}[format]
    stored = processed(data, encode_format=suffix, **KEEP)
    assert opened(stored.data).mode == "RGB" and len(opened(stored.data).info.get("exif", b"")) == 0
    assert psnr(opened(stored.data), pixels(data)) > 28


def test_a_png_with_a_wrong_checksum_is_encoded_again():
    data = bytearray(encoded(scene(40, 30), "PNG"))
    data[data.rindex(b"IEND") - 6] ^= 1  # in the checksum of the pixels
    stored = processed(bytes(data), encode_format="png", **KEEP).data
    body = stored[stored.index(b"IDAT") : stored.index(b"IEND") - 8]
    assert struct.unpack(">I", stored[stored.index(b"IEND") - 8 :][:4])[0] == zlib.crc32(body)


def test_a_jpeg_with_a_second_picture_behind_it_keeps_the_first_alone():
    data = encoded(scene(), "MPO", save_all=True, append_images=[scene(80, 60)])
    stored = processed(data, **KEEP).data
    assert len(stored) < len(data) and opened(stored).format == "JPEG"
    assert np.array_equal(opened(stored), opened(data))


# -- what is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF"])
@pytest.mark.parametrize("tenths", [5, 9])
def test_a_truncated_picture_is_refused(format, tenths):
    data = encoded(scene(), format)
    assert reason_of(data[: len(data) * tenths // 10]) in (PictureReason.TRUNCATED, PictureReason.DECODE_ERROR)


def test_a_bomb_is_refused_by_its_header():
    for format in ("JPEG", "PNG", "WEBP", "GIF", "AVIF"):
        assert reason_of(encoded(scene(), format), max_pixels=119_999) is PictureReason.TOO_MANY_PIXELS


def test_a_jpeg_with_a_thousand_scans_is_refused_without_decoding_them():
    data = encoded(scene(), progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    assert reason_of(data[:-2] + last * 1000 + b"\xff\xd9") is PictureReason.DECODE_ERROR


def test_a_jpeg_of_a_million_remarks_is_refused_without_reading_them():
    data = encoded(scene())
    with pytest.raises(PictureError, match="over 10000 segments"):
        process_picture(data[:2] + b"\xff\xfe\0\2" * 1_000_000 + data[2:], PictureOptions())


def test_a_jpeg_that_viewers_would_show_is_accepted_although_it_is_damaged():
    data = encoded(scene())
    stuffed = data[:-2] + b"\xff\xff\x01" + b"\0" * 50 + b"\xff\xd9"
    assert np.array_equal(pixels(stuffed), Image.open(io.BytesIO(stuffed)))


def test_boxes_that_cannot_be_read_refuse_the_picture():
    for row in ([0, 0, 1], [0, 0, "a", 1], [0, 0, float("nan"), 1], None):
        assert reason_of(encoded(scene()), [row]) is PictureReason.BAD_BOX
