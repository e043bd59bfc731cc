"""Convert pages of any encoding to UTF-8.

Valid UTF-8 is read as UTF-8 even if its label says otherwise: text in another encoding is never valid UTF-8 by chance.
For other bytes, the byte order mark, the HTTP header, the `meta` element and a guess are tried in this order; a label
that does not fit the bytes is ignored.
"""

from __future__ import annotations

import codecs
import re

from resiliparse.parse.encoding import detect_encoding

_META = re.compile(rb"<meta[^>]{0,500}?charset\s*=\s*[\"']?\s*([\w.:-]{1,40})", re.IGNORECASE)
_META_REACH = 4096
_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))

# The codec that browsers use for a label (encoding.spec.whatwg.org), where Python's codec of that name reads less.
_READ_AS = {
    "iso8859-1": "cp1252",
    "ascii": "cp1252",
    "iso8859-9": "cp1254",
    "iso8859-11": "cp874",
    "tis-620": "cp874",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
    "johab": "cp949",
    "big5": "big5hkscs",
}
_LABELS = {
    "x-sjis": "cp932",
    "windows-31j": "cp932",
    "ks_c_5601-1987": "cp949",
    "windows-949": "cp949",
    "x-gbk": "gb18030",
    "x-euc-jp": "euc_jp",
    "x-x-big5": "big5hkscs",
    "x-cp1251": "cp1251",
    "windows-874": "cp874",
    "x-mac-cyrillic": "mac_cyrillic",
    "iso-8859-8-i": "iso8859-8",
    "unicode": "utf-16-le",
}
_MULTI_BYTE = ("euc_jp", "cp932", "gb18030", "big5hkscs", "cp949")
"""Text with one byte for each character is hardly ever valid in one of these."""
_SEVEN_BIT = ("iso2022_jp", "hz", "iso2022_kr")
_NO_TEXT = frozenset(
    "base64 bz2 hex quopri uu zlib rot13 idna punycode unicode_escape raw-unicode-escape unicode-escape undefined "
    "mbcs oem utf-7".split()
)
_FEW_CHARACTERS = 4
_MAX_BAD_SHARE = 0.02
_GUESS_BYTES = 1 << 17


def as_utf8(page: bytes, http_charset: str | None) -> bytes:
    """Convert the page to valid UTF-8; bytes that cannot be read become U+FFFD."""
    for mark, marked in _MARKS:
        if page.startswith(mark):
            return page[len(mark) :].decode(marked, "replace").encode()
    wide = _wide_codec(page)
    if wide:
        return page.decode(wide, "replace").encode()
    labels = [codec for label in (http_charset, _meta_charset(page)) if label and (codec := codec_of(label))]
    if page.isascii():
        seven_bit = next((codec for codec in labels if codec in _SEVEN_BIT), None)
        if seven_bit is None and b"\x1b$" in page:
            seven_bit = "iso2022_jp"
        return page if seven_bit is None else page.decode(seven_bit, "replace").encode()
    page = _without_cut_character(page)
    if _is_utf8(page) and not _is_doubtful_utf8(page, labels):
        return page
    return _decoded(page, labels).encode()


def codec_of(label: str) -> str | None:
    """Python's name of the codec that browsers use for a label; None if it is not a codec of text."""
    label = label.strip().lower()
    if label in _LABELS:
        return _LABELS[label]
    try:
        name = codecs.lookup(label).name
    except (LookupError, ValueError):
        return None
    return None if name in _NO_TEXT else _READ_AS.get(name, name)


def _meta_charset(page: bytes) -> str | None:
    found = _META.search(page, 0, _META_REACH)
    label = found[1].decode("ascii", "replace") if found else None
    # In a page in UTF-16 this label would not have been found.
    return "utf-8" if label and label.lower().startswith("utf-16") else label


def _wide_codec(page: bytes) -> str | None:
    """The codec of UTF-16 without a byte order mark, where every other byte of markup is 0; None otherwise."""
    if b"\0" not in page[:64]:
        return None
    start = page[:1024]
    even, odd = start[::2].count(0), start[1::2].count(0)
    if odd > len(start) // 6 and even * 8 < odd:
        return "utf-16-le"
    return "utf-16-be" if even > len(start) // 6 and odd * 8 < even else None


def _without_cut_character(page: bytes) -> bytes:
    """The page without the last character of UTF-8, if the page was cut within it."""
    try:
        page[-4:].decode()
    except UnicodeDecodeError as error:
        if error.reason == "unexpected end of data" and _is_utf8(page[: len(page) - len(page[-4:]) + error.start]):
            return page[: len(page) - len(page[-4:]) + error.start]
    return page


def _is_utf8(page: bytes) -> bool:
    try:
        page.decode()
    except UnicodeDecodeError:
        return False
    return True


def _is_doubtful_utf8(page: bytes, labels: list[str]) -> bool:
    """Whether so few characters are not ASCII that this may be GB that looks like UTF-8; then the label decides."""
    if not labels or labels[0] in ("utf-8", "cp1252"):
        return False
    text = page.decode()
    num_wide = sum(1 for char in text if char > "\x7f") if len(page) - len(text) <= 3 * _FEW_CHARACTERS else len(text)
    return num_wide <= _FEW_CHARACTERS


def _decoded(page: bytes, labels: list[str]) -> str:
    """Decode the page by the first codec that fits, or else the one that fits best."""
    guess = codec_of(detect_encoding(page, _GUESS_BYTES) or "")
    if labels[:1] == ["cp1252"]:  # many servers send this label with every page
        labels = [*labels[1:], *([guess] if guess in _MULTI_BYTE else []), "cp1252"]
    best, fewest = "", len(page) + 1
    for codec in dict.fromkeys([*labels, *([guess] if guess else []), "cp1252"]):
        text = page.decode(codec, "replace")
        num_bad = text.count("\ufffd")
        if num_bad <= _MAX_BAD_SHARE * sum(1 for byte in page[:_GUESS_BYTES].translate(None, _ASCII)):
            return text
        if num_bad < fewest:
            best, fewest = text, num_bad
    return best


_ASCII = bytes(range(128))
