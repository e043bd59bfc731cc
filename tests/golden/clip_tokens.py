"""Writes clip_tokens.jsonl.gz: strings of every kind and the ids that open_clip's tokenizer gives them.

The first line names the versions that made it; each further one is `[text, ids]`, without start and end
token. Write it again with `python tests/golden/clip_tokens.py`.
"""

from __future__ import annotations

import gzip
import html.entities
import importlib.metadata
import json
import platform
import random
from collections.abc import Iterator
from itertools import product
from pathlib import Path

GOLDEN_FILE = Path(__file__).with_name("clip_tokens.jsonl.gz")

# fmt: off
SENTENCES = [
    "A black and white photo of two dogs running on the beach",
    "Straßenschild in München, Größe 2,50 m × 0,80 m",
    "Un café crème à côté d'une pâtisserie près de l'église",
    "El niño y la cigüeña en Málaga, ¡qué ilusión!", "Não há pão nem maçãs na estação de São Paulo",
    "Żółć, gęś i źrebię na łące pod Łodzią", "Příliš žluťoučký kůň",
    "Hoa sen nở ở hồ Tây, Hà Nội, Việt Nam", "Çiğ köfte, İstanbul'da ışıklı bir gece",
    "Skrúðgarður í Reykjavík, þriðja júní", "Őszi erdő és hűvös tó Gyöngyösön", "Ātrs vilciens uz Rīgu",
    "Ångström och smörgås på bordet", "Красная площадь зимним вечером, Москва", "Їжак під ґанком у Києві",
    "Стара планина, България", "Ћевапи у Београду", "Το ηλιοβασίλεμα στη Σαντορίνη, ΟΔΥΣΣΕΑΣ",
    "Հայաստանի լեռները", "საქართველოს მთები", "חתול יושב על גדר בירושלים", "קָמָץ וּפַתָּח",
    "قطة تجلس على السياج في القاهرة", "الْعَرَبِيَّةُ", "گربه روی دیوار در تهران‌نو",
    "بلی دیوار پر بیٹھی ہے", "दिल्ली में लाल क़िला", "পাহাড়ের উপর সূর্যোদয়", "ਹਰਿਮੰਦਰ ਸਾਹਿਬ",
    "ગીરનો સિંહ", "மாமல்லபுரம் கடற்கரை கோயில்", "హైదరాబాద్ చార్మినార్", "ಮೈಸೂರು ಅರಮನೆ",
    "കേരളത്തിലെ വള്ളംകളി", "අනුරාධපුර දාගැබ", "วัดอรุณในตอนเช้า", "ວັດພູ", "ပုဂံဘုရား",
    "ប្រាសាទអង្គរវត្ត", "པོ་ཏ་ལ", "አዲስ አበባ", "ᠮᠣᠩᠭᠣᠯ", "故宫的雪景", "臺北一〇一大樓",
    "富士山と桜、春の朝", "ﾊﾝｶｸｶﾅ と ｶﾞ", "경복궁의 가을", "한글", "𝒜 𝓶𝓪𝓽𝓱 𝔣𝔬𝔫𝔱",
    "ＦＵＬＬ ｗｉｄｔｈ　１２３", "ﬁne ﬂowers, eﬃcient, ﬆone", "ⓒⓘⓡⓒⓛⓔⓢ", "Ⅷ ⅷ ½ ¾ ² ₃ ① ٣ ३ ௧ 三",
    "ᚠᚢᚦᚨᚱᚲ", "ⲁⲃⲅ", "Ꮳꮃꮩ", "ⵜⴰⵎⴰⵣⵉⵖⵜ", "ʻŌlelo Hawaiʻi",
    "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢L̠ͨͧͩ͘G̴̻͈͍͔̹̑͗̎̅͛́Ǫ̵̹̻̝̳͂̌̌͘!",
    "e\u0301 vs é, A\u030a vs Å, q\u0307\u0323",
]
WORDS = [
    "photo", "Cat", "DOG", "sunset", "O'Neill's", "café", "naïve", "東京", "Москва", "المدينة", "1984",
    "3.5mm", "f/2.8", "#ootd", "@user_name", "e-mail", "www.example.com/a?b=c&d=e",
    "IMG_20190101_123456.jpg", "ISBN:978-3-16", "$1,299.99", "50%", "C++", "rock'n'roll", "they're",
    "I'll", "we've", "she'd", "I'm", "can't", "dogs'", "antidisestablishmentarianism",
    "supercalifragilistic", "zzzzqxjk", "XxXx", "iPhone12", "4K", "T-shirt", "½", "№5", "™", "—", "…",
    "“quoted”", "‘single’", "«guillemets»", "<b>bold</b>", "&amp;", "&lt;3", "&quot;", "&nbsp;", "&#39;s",
    "&#x1F600;", "_", "-", "...", "!!!", "?!", "(c)", "[1]", "{x}", "\\n", "~", "^_^", ":-)",
]
EMOJI = [
    "😀", "😂🤣", "❤️", "❤", "👍🏽", "👩‍👩‍👧‍👦", "🏳️‍🌈", "🇯🇵🇩🇪", "1️⃣", "#️⃣", "🧑🏿‍🚀", "☀️☁",
    "🏴\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f", "♥", "✔️", "➡", "🅰️", "㊗️", "🀄",
    "⚽🏀🏈", "🐶🐱🐭", "👨🏻‍❤️‍💋‍👨🏽",
]
NUMBERS = [
    "0", "007", "12345678901234567890", "3.14159", "1,000,000", "1e-5", "2x4", "24/7", "10:30am", "19th",
    "0x1F", "+49 (0)30/123", "x²", "H₂O",
]
CONTRACTIONS = [
    "'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "’s", "´s", "`s", "''s", "'S", "'RE", "'LL", "'\u017f",
    "'\u017fs", "'x", "'", "'1", " 's", "'sure", "'tis", "'d've", "'Ve\u017f", "!'s", "n't", "\u2032s",
    "\u02bcs", "&#39;s", "&apos;ll", "&rsquo;re",
]
SPACES = [
    "\t", "\n", "\r", "\r\n", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x1f", "\x85", "\xa0", "\u1680",
    "\u180e", *map(chr, range(0x2000, 0x2010)), "\u2028", "\u2029", "\u202f", "\u205f", "\u2060",
    "\u3000", "\ufeff", "&nbsp;", "&#9;", "&#10;", "&#13;", "&emsp;", "&amp;nbsp;", "  ", " \t\n ",
]
ENTITIES = [
    "&amp;amp;", "&amp;amp;amp;", "&amp;lt;b&amp;gt;", "&eacute", "&eacutes", "&notit;", "&notin;",
    "&AMP", "&EACUTE;", "&#233;", "&#xE9;", "&#XE9;", "&#0;", "&#128;", "&#150;", "&#55296;",
    "&#xD83D;&#xDE00;", "&#x110000;", "&#99999999;", "&#31;", "&#127;", "&#;", "&;", "&", "&&", "& amp;",
    "AT&T", "R&D", "a&b;c", "&lt;script&gt;", "<&eacute;>", "<i>&amp;eacute;</i>", "&#38;#233;",
    "&#38;amp;#233;", "&Afr;", "&NotEqualTilde;",
]
ODD = [
    "", " ", "\n", "\x00", "\ufeff", "\ufffd", "\ufffe\uffff", "\ud800", "\udfff", "a\ud83d b",
    "\ud83d\ude00", "\ude00\ud83d", "\x1b[31mred\x1b[0m", "\x1b[", "\x1b]0;x\x07",
    "\u202eright to left\u202c", "\u200bzero\u200bwidth\u200c\u200d", "soft\xadhyphen", "İI ıi", "ẞ ß SS",
    "ΑΣ ΑΣΑ Σ", "\u212a \u212b \u2126", "ǅ ǆ Ǆ", "ﬅ", "ŉ", "\u0149s", "</w>", "a</w>", "</w", "Ġthe",
    "<s>", "[CLS]", "<pad>", "<|", "|>", "start of text", "\\u00e9", "%20%C3%A9", "=?UTF-8?Q?=C3=A9?=",
    "\U0001d173\U000f0000\U0010ffff", "\ufff9\ufffa\ufffb\ufffc", "\u206a\u206f", "a" * 2000, "ab" * 700,
    "é" * 300, "9" * 200, "!" * 500, "?!" * 150, "😀" * 100, "ſ" * 30,
]
MOJIBAKE = [
    "donâ€™t", "â€œquotedâ€\x9d", "cafÃ©", "cafÃƒÂ©", "Ã  la carte", "â\x80\x94", "ðŸ˜€", "Â£5 Â©",
    "l’humanitÃ©", "schÃ¶n & gut", "VoilÃ&nbsp;",
]
LEGACY_ENCODINGS = [
    "latin-1", "cp1252", "cp1251", "cp437", "cp1250", "mac-roman", "iso-8859-2",
]
OLD_BLOCKS = [
    (0x21, 0x7F), (0xA1, 0x250), (0x250, 0x2B0), (0x300, 0x370), (0x391, 0x3CA), (0x400, 0x460),
    (0x5D0, 0x5EB), (0x621, 0x64B), (0x905, 0x93A), (0xE01, 0xE3B), (0x10D0, 0x10F1), (0x1E00, 0x1E9A),
    (0x2010, 0x2028), (0x20A0, 0x20B2), (0x2100, 0x2139), (0x2150, 0x2180), (0x2190, 0x2300),
    (0x2500, 0x2700), (0x3041, 0x3097), (0x30A1, 0x30FB), (0x4E00, 0x9FA6), (0xAC00, 0xD7A4),
    (0xFB00, 0xFB07), (0xFF01, 0xFF5F), (0x1D400, 0x1D455), (0x1F300, 0x1F321),
]
# fmt: on
"""Blocks long assigned, so that versions of Unicode agree on them."""


def diverse_texts() -> list[str]:
    """Over 3,000 different strings, the same each time; none holds a control token's name."""
    draw = random.Random(4)
    return list(dict.fromkeys([*_listed(), *_damaged(), *_drawn(draw)]))


def _listed() -> Iterator[str]:
    for sentence in SENTENCES:
        yield from (sentence, sentence.upper(), sentence.title(), f"  {sentence}\n", f"{sentence}. " * 20)
    yield from (*WORDS, *EMOJI, *ENTITIES, *ODD)
    yield from (" ".join(EMOJI), " ".join(WORDS), "".join(WORDS), " ".join(SENTENCES))
    for word, ending in product(["it", "IT", "dogs", "東京", "42", "é", ""], CONTRACTIONS):
        yield word + ending
    for space in SPACES:
        yield from (f"a{space}b", f"{space}photo{space}{space}of 's{space}", f"3{space}4 {space}é")
    for byte in range(256):
        yield f"a{chr(byte)}b {chr(byte)}1{chr(byte)}{chr(byte)}!"
    for name in list(html.entities.html5)[::6]:
        yield f"x&{name} y"
    for emoji in EMOJI:
        yield from (f"so cute {emoji}", f"{emoji}{emoji}text{emoji}", emoji * 20)
    for digits in NUMBERS:
        yield from (digits, f"no.{digits}th", digits * 3)


def _damaged() -> Iterator[str]:
    """Mojibake: UTF-8 read as something else, once and twice, and cut short."""
    for sentence, encoding in product(SENTENCES, LEGACY_ENCODINGS):
        garbled = sentence.encode().decode(encoding, errors="replace")
        yield garbled[:60]
        if encoding in ("latin-1", "cp1252"):
            yield garbled.encode().decode(encoding, errors="replace")[:90]
    for text in MOJIBAKE:
        yield from (text, f"{text} – {text}", text.upper())


def _drawn(draw: random.Random) -> Iterator[str]:
    parts = [*WORDS, *EMOJI, *ENTITIES, *CONTRACTIONS, *SPACES]
    for _ in range(700):
        yield draw.choice([" ", "  ", "", ", ", "\n"]).join(draw.choices(parts, k=draw.randint(2, 14)))
    for _ in range(500):
        letters = [chr(code) for code in range(*draw.choice(OLD_BLOCKS))]
        words = ["".join(draw.choices(letters, k=draw.randint(1, 9))) for _ in range(draw.randint(1, 5))]
        yield " ".join(words)
    for _ in range(300):
        blocks = draw.choices(OLD_BLOCKS, k=draw.randint(1, 20))
        yield "".join(chr(draw.randrange(*block)) for block in blocks)
    for _ in range(300):
        yield "".join(chr(draw.randrange(128)) for _ in range(draw.randint(1, 40)))
    for length in (100, 1000, 5000):
        yield "".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=length))
        yield " ".join(draw.choices(WORDS, k=length // 5))


def main() -> None:
    from open_clip.tokenizer import SimpleTokenizer

    peer = SimpleTokenizer()
    made_by = {name: importlib.metadata.version(name) for name in ("open_clip_torch", "ftfy", "regex")}
    lines = [json.dumps({"made by": made_by | {"python": platform.python_version()}})]
    lines += [json.dumps([text, peer.encode(text)], separators=(",", ":")) for text in diverse_texts()]
    # Without name and time in its header the same lines make the same file.
    GOLDEN_FILE.write_bytes(gzip.compress("\n".join(lines).encode("ascii"), mtime=0))
    print(f"{GOLDEN_FILE}: {len(lines) - 1:,} strings, {GOLDEN_FILE.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
