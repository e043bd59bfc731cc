"""Caption rules: what each drops and what it leaves."""

import pytest

from diptych_shards.curate.blocking import HostList, PhraseList
from diptych_shards.curate.rules import RULES, CaptionLimits, first_broken, num_characters, num_words

LIMITS = CaptionLimits(min_characters=3, max_characters=60, min_words=1, blocked=PhraseList.of(["very Bad", "übel"]))
DROPPED = {
    "empty": [""],
    "too_short": ["ab", "x"],
    "too_long": ["many words " * 6],
    "file_name": [
        "IMG_2041",
        "dsc00123.JPG",
        "dscn0042",
        "IMG 20210304 112233",
        "P1010023",
        "image (3)",
        "image001",
        "Photo-3",
        "Untitled-1",
        "Screenshot 2021-03-04",
        "Screenshot 2021-03-04 at 11.22.33",
        "WhatsApp Image 2020-01-02 at 3.04.05 PM.jpeg",
        "sunset-beach.webp",
        "a/b/c.png?w=300",
        "5d41402abc4b2a76b9719d911017c592",
        "123e4567-e89b-12d3-a456-426614174000",
        "summer_2019",
    ],
    "address": ["https://a.org/b?c", "www.shop.example", "me.you@mail.example.org", "shop.example.com/red"],
    "markup": [
        "<p class=x>red",
        "{{ title }}",
        "${name}",
        "[caption id=3]",
        "a &nbsp; b",
        "%d0%bf%d1%80",
        "function(x)",
    ],
    "boilerplate": [
        "Image",
        "  No image available.",
        "LOGO!",
        "Kein Bild verfügbar",
        "фото",
        "Click to enlarge the dog",
    ],
    "few_letters": ["12345 67", "*** --- !!!", "$ 12.99", "😀😀😀"],
    "repetition": ["aaaaaaah", "shoes red shoes blue shoes green shoes shoes", "a b c " * 5 + "a b"],
    "blocked_phrase": ["a very, BAD thing", "Übel ist das"],
}
LEFT = [
    "a red apple on a table",
    "Photo of a dog in 1995",
    "Golden retriever puppy.jpg",
    "BMW X5 2019",
    "image processing pipeline",
    "I <3 NY",
    "R&B; soul",
    "very good, bad weather",
    "the logo of a football club",
    "Node.js",
    "一只猫在桌子上",
    "हिन्दी में एक लाल सेब",
    "แมวอยู่บนโต๊ะ",
    "سيارة حمراء",
    "New York, New York",
    "cat",
    "P-51",
    "P-51 Mustang",
    "P 51",
    "Photo 51",
    "Image 7",
    "B-2",
    "B-2 Spirit",
    "F-104",
    "A380",
    "MiG-29",
    "DC-3",
    "AK-47",
    "Sony DSC-RX100",
    "DJI Mini 3",
    "GoPro 9",
    "Scan 2 Go",
    "Untitled 12 by Cy Twombly",
    "Studio 54",
    "Apollo 11",
    "R2-D2",
    "IMG 2",
    "猫咪",
    "猫",
    "ネコ",
    "강아지",
    "개",
    "แมว",
]


def broken(caption):
    return first_broken(caption, LIMITS, RULES)


@pytest.mark.parametrize(
    "rule, caption", [(rule, caption) for rule, captions in DROPPED.items() for caption in captions]
)
def test_a_rule_drops(rule, caption):
    assert RULES[rule](caption, LIMITS)
    assert broken(caption) is not None


def test_every_rule_has_an_example():
    assert DROPPED.keys() == RULES.keys()
    assert all(any(broken(caption) == rule for caption in captions) for rule, captions in DROPPED.items())


@pytest.mark.parametrize("caption", LEFT)
def test_captions_of_pictures_are_kept(caption):
    assert broken(caption) is None


def test_words_and_characters_are_counted():
    assert RULES["too_short"]("two words", CaptionLimits(min_words=3))
    assert not RULES["too_short"]("now three words", CaptionLimits(min_words=3))


@pytest.mark.parametrize(
    "caption, words",
    [
        ("a red apple on a table", 6),
        ("café au lait", 3),
        ("桌子上的猫咪", 6),  # table on 's cat: 4 words
        ("猫咪", 2),
        ("一只 iPhone 12，桌子。", 6),
        ("テーブルの上の赤いりんご", 6),  # 7 words
        ("コンピューター", 1),
        ("ねこ", 1),
        ("테이블 위의 빨간 사과", 4),
        ("강아지", 1),
        ("แมวอยู่บนโต๊ะ", 4),
        ("แมว", 1),
        ("красный дом", 2),
        ("हिन्दी में एक लाल सेब", 5),
    ],
)
def test_words_are_counted_in_scripts_without_spaces(caption, words):
    assert num_words(caption) == words
    assert not RULES["too_short"](caption, CaptionLimits(min_words=words))
    assert RULES["too_short"](caption, CaptionLimits(min_words=words + 1))


def test_a_letter_of_chinese_japanese_or_korean_counts_as_three_characters():
    for caption, characters in (
        ("cat", 3),
        ("猫", 3),
        ("猫咪", 6),
        ("ねこ", 6),
        ("고양이", 9),
        ("แมว", 3),
        ("é", 1),
        ("猫 cat", 7),
    ):
        assert num_characters(caption) == characters
    assert RULES["too_short"]("猫", CaptionLimits(min_characters=6))
    assert not RULES["too_short"]("猫咪", CaptionLimits(min_characters=6))
    assert not RULES["too_long"]("猫" * 1_000, CaptionLimits(max_characters=1_000))


@pytest.mark.parametrize(
    "piece",
    [
        "_",
        "a",
        "img 1 ",
        ".jpg",
        "<a",
        "a.",
        "a@",
        "- ",
        "1",
        "screenshot 2021-03-04 ",
        "猫",
        "แม",
        "(",
        "aé ",
        "&a",
        "%a",
    ],
)
def test_no_caption_takes_long(piece):
    caption = piece * 50_000
    for rule in RULES.values():
        rule(caption, LIMITS)


def test_phrases_are_whole_words():
    phrases = PhraseList.of(["ass", "two words", " "])
    assert phrases.is_in("an ASS!") and phrases.is_in("these two - words")
    assert not phrases.is_in("classic") and not phrases.is_in("two  other words")
    assert not PhraseList().is_in("anything")


def test_hosts_are_blocked_with_all_below_them():
    hosts = HostList.of(["bad.org", ".Ads.net.", ""])
    assert hosts.has("https://bad.org/x") and hosts.has("http://img.BAD.org:80/x") and hosts.has("https://a.ads.net.")
    assert not hosts.has("https://notbad.org/bad.org") and not hosts.has("https://[bad.org/") and not hosts.has("")
