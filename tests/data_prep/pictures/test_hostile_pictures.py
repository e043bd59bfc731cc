"""Any bytes become a picture, or are refused with a reason."""

import io
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from diptych.data.picture_safety import PictureError
from diptych_shards.pictures.picture import PictureOptions, process_picture
from tests.data_prep.made_pictures import encoded, scene

EXIF = Image.Exif()
EXIF[0x0112], EXIF[0x010F] = 6, "Maker"
WHOLE = {
    "JPEG": encoded(scene(48, 36), exif=EXIF),
    "progressive JPEG": encoded(scene(48, 36), progressive=True),
    "CMYK JPEG": encoded(scene(48, 36).convert("CMYK")),
    "PNG": encoded(scene(48, 36), "PNG", exif=EXIF),
    "palette PNG": encoded(scene(48, 36).convert("P"), "PNG", transparency=3),
    "WebP": encoded(scene(48, 36), "WEBP", exif=EXIF),
    "lossless WebP": encoded(scene(48, 36).convert("RGBA"), "WEBP", lossless=True),
    "GIF": encoded(scene(48, 36), "GIF", save_all=True, append_images=[scene(48, 36).rotate(180)]),
    "BMP": encoded(scene(48, 36), "BMP"),
    "palette BMP": encoded(scene(48, 36).convert("P"), "BMP"),
    "AVIF": encoded(scene(48, 36), "AVIF", exif=EXIF),
}
OPTIONS = PictureOptions(image_size=24)
KEEPING = {
    suffix: PictureOptions(resize_mode="no", skip_reencode=True, encode_format=suffix, encode_quality=5)
    for suffix in ("jpg", "png", "webp")
}

changed_bytes = st.lists(st.tuples(st.integers(0, 100_000), st.integers(0, 255)), min_size=1, max_size=5)


@pytest.mark.parametrize("whole", WHOLE.values(), ids=WHOLE)
@given(changes=changed_bytes, cut=st.integers(0, 20_000), repeated=st.integers(0, 200))
@settings(max_examples=100 if os.environ.get("NIGHTLY") else 30, deadline=None)
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_changed_cut_and_stretched_bytes_end_as_a_picture_or_a_reason(whole, changes, cut, repeated):
    changed = bytearray(whole)
    for position, value in changes:
        changed[position % len(changed)] = value
    middle = cut % len(changed)
    stretched = bytes(changed[:middle] + changed[middle : middle + repeated] + changed[middle:])
    for data in (bytes(changed), bytes(changed[: cut or None]), stretched):
        for options in (OPTIONS, *KEEPING.values()):
            try:
                stored = process_picture(data, options)
            except PictureError:
                continue
            with Image.open(io.BytesIO(stored.data)) as picture:
                picture.load()
                assert picture.size == (stored.width, stored.height)


@given(data=st.binary(max_size=200), magic=st.sampled_from([whole[:12] for whole in WHOLE.values()]))
def test_a_picture_in_its_first_bytes_alone_is_refused(data, magic):
    with pytest.raises(PictureError):
        process_picture(magic + data, OPTIONS)
