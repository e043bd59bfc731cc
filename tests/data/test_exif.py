"""EXIF as a JSON string."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.TiffImagePlugin import IFDRational

from diptych.data.exif import exif_json


def written():
    exif = Image.Exif()
    exif[0x010F], exif[0x0112], exif[0x011A] = "Maker", 8, IFDRational(72, 1)
    exif[0x013B] = "an artist\0and a tail"
    below = exif.get_ifd(0x8769)
    below[0x829A], below[0x8827], below[0x9000] = IFDRational(1, 60), 400, b"0232"
    below[0x9101], below[0x927C] = b"\1\2\3\0", b"secret of the maker" * 9
    position = exif.get_ifd(0x8825)
    position[1], position[2] = "N", (IFDRational(51), IFDRational(30), IFDRational(1, 2))
    return exif.tobytes().removeprefix(b"Exif\0\0")


def with_thumbnail():
    """EXIF with a second directory behind the first: a thumbnail."""
    first = (b"\x01\x00" + b"\x12\x01\x03\x00\x01\x00\x00\x00\x06\x00\x00\x00", 8)
    second = 8 + 2 + 12 + 4
    thumbnail = b"\xff\xd8thumbnail\xff\xd9"
    entries = b"\x01\x02\x04\x00\x01\x00\x00\x00" + (second + 30).to_bytes(4, "little")
    entries += b"\x02\x02\x04\x00\x01\x00\x00\x00" + len(thumbnail).to_bytes(4, "little")
    head = b"II*\0\x08\0\0\0" + first[0] + second.to_bytes(4, "little")
    return head + b"\x02\x00" + entries + b"\0\0\0\0" + thumbnail


def test_the_json_is_keyed_by_group_and_name():
    fields = json.loads(exif_json(written()))
    assert fields["Image Make"] == "Maker" and fields["Image Orientation"] == "Rotated 90 CCW"
    assert fields["Image XResolution"] == "72" and fields["Image Artist"] == "an artist"
    assert fields["EXIF ExposureTime"] == "1/60" and fields["EXIF ISOSpeedRatings"] == "400"
    assert fields["EXIF ExifVersion"] == "0232" and fields["EXIF ComponentsConfiguration"] == "[1, 2, 3, 0]"
    assert fields["GPS GPSLatitudeRef"] == "N" and fields["GPS GPSLatitude"] == "[51, 30, 1/2]"
    assert not any("secret" in value for value in fields.values())


def test_where_there_is_none_the_object_is_empty():
    assert (
        exif_json(None) == exif_json(b"") == exif_json(b"no exif at all") == exif_json(b"II*\0\xff\xff\xff\xff") == "{}"
    )


def test_directories_that_lead_in_a_circle_end():
    circle = b"II*\0\x08\0\0\0" + b"\x01\x00" + b"\x69\x87\x04\0\x01\0\0\0\x08\0\0\0" + b"\x08\0\0\0"
    assert "Image ExifOffset" in json.loads(exif_json(circle))


@pytest.mark.parametrize("exif", [written(), with_thumbnail()], ids=["full", "thumbnail"])
@given(changes=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=8), end=st.integers(0, 600))
def test_broken_exif_is_read_as_far_as_it_goes(exif, changes, end):
    broken = bytearray(exif)
    for position, value in changes:
        broken[position % len(broken)] = value
    assert isinstance(json.loads(exif_json(bytes(broken[:end]))), dict)
