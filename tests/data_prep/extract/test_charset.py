import pytest
from hypothesis import given
from hypothesis import strategies as st

from diptych_shards.extract.charset import as_utf8, codec_of

JAPANESE = "日本の庭園は、静かな場所です。池と石と木があります。春には桜が咲き、秋には紅葉が美しい。"
CHINESE = "中国的花园是一个安静的地方，有池塘、石头和树木。春天樱花盛开，秋天红叶很美。"
RUSSIAN = "Японский сад — тихое место. Здесь есть пруд, камни и деревья, а весной цветёт вишня."
FRENCH = "Le jardin japonais est à côté du château ; on y trouve un étang, des pierres et des érables – « très beau »."
KOREAN = "일본 정원은 조용한 곳입니다. 연못과 돌과 나무가 있습니다. 봄에는 벚꽃이 핍니다."


def html(text: str, meta: str = "") -> str:
    return f"<html><head>{meta}<title>x</title></head><body><img src=x.jpg alt='{text}'></body></html>"


LEGACY = [
    ("euc_jp", "EUC-JP", JAPANESE),
    ("cp932", "Shift_JIS", JAPANESE),
    ("iso2022_jp", "ISO-2022-JP", JAPANESE),
    ("gb18030", "GB2312", CHINESE),
    ("gb18030", "gbk", CHINESE),
    ("big5", "Big5", "中國的花園是一個安靜的地方"),
    ("cp949", "ks_c_5601-1987", KOREAN),
    ("cp1251", "windows-1251", RUSSIAN),
    ("koi8_r", "koi8-r", RUSSIAN.replace("—", "-")),
    ("cp1252", "iso-8859-1", FRENCH),
]


@pytest.mark.parametrize(("codec", "label", "text"), LEGACY)
def test_a_label_in_the_header_or_in_the_page_is_believed(codec, label, text):
    assert as_utf8(html(text).encode(codec), label).decode() == html(text)
    labelled = html(text, f"<META http-equiv=Content-Type content='text/html; charset={label}'>")
    assert as_utf8(labelled.encode(codec), None).decode() == labelled


@pytest.mark.parametrize(
    ("codec", "text"),
    [("euc_jp", JAPANESE), ("cp932", JAPANESE), ("gb18030", CHINESE), ("cp1251", RUSSIAN), ("cp1252", FRENCH)],
)
def test_without_a_label_the_bytes_decide(codec, text):
    assert as_utf8(html(text).encode(codec), None).decode() == html(text)


@pytest.mark.parametrize(
    "label", ["iso-8859-1", "utf-8", "gb2312", "no-such-charset", "utf-16", "base64", "rot13", "\0"]
)
def test_utf8_is_read_as_utf8_under_any_label(label):
    for text in (JAPANESE, FRENCH):
        assert as_utf8(html(text).encode(), label).decode() == html(text)


@pytest.mark.parametrize(("codec", "text"), [("euc_jp", JAPANESE), ("gb18030", CHINESE)])
def test_a_label_that_does_not_fit_is_not_believed(codec, text):
    for wrong in ("utf-8", "iso-8859-1"):
        assert as_utf8(html(text).encode(codec), wrong).decode() == html(text)


@pytest.mark.parametrize("codec", ["utf-16-le", "utf-16-be", "utf-16", "utf-8-sig"])
def test_wide_characters_and_marks(codec):
    assert as_utf8(html(JAPANESE).encode(codec), None).decode() == html(JAPANESE)


def test_a_page_that_was_cut_within_a_character_stays_utf8():
    cut = ("<p>é" * 3).encode() + "庭".encode()[:2]
    assert as_utf8(cut, None) == ("<p>é" * 3).encode()


def test_a_broken_character_costs_only_itself():
    page = html(JAPANESE * 5).encode()
    place = page.index("庭".encode())
    broken = page[:place] + b"\xff" + page[place:]
    assert as_utf8(broken, "utf-8").decode().replace("\ufffd", "") == html(JAPANESE * 5)


@given(
    st.binary(max_size=300),
    st.one_of(st.none(), st.text(max_size=20), st.sampled_from(["gbk", "utf-16", "hz", "utf-7"])),
)
def test_any_bytes_become_utf8(page, label):
    as_utf8(page, label).decode()


@given(st.text(max_size=30))
def test_any_label_gives_a_codec_of_text_or_none(label):
    codec = codec_of(label)
    assert codec is None or isinstance(b"abc".decode(codec, "replace"), str)
