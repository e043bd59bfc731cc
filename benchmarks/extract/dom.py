"""A page read in another way: lexbor's tree of elements, and the rules about addresses written a second time."""

from __future__ import annotations

import re
from typing import Any, NamedTuple
from urllib.parse import quote, urljoin, urlsplit, urlunsplit

from resiliparse.parse.encoding import bytes_to_str, map_encoding_to_html5
from resiliparse.parse.html import HTMLTree

from diptych_shards.extract.image_element import LAZY_ADDRESSES, LAZY_SRCSETS

_AMBIGUOUS = ("data-url", "data-img", "data-image", "data-echo", "data-lazy")
_META_CHARSET = re.compile(rb"""<meta[^>]+charset\s*=\s*["']?\s*([\w.:-]+)""", re.IGNORECASE)
_NO_PHOTOGRAPHS = ("image/svg", "image/avif", "image/jxl")
_SPACES = "".join(map(chr, range(0x21)))
_SAFE = "!$%&'()*+,/:;=?@[]_~|"


class DomImage(NamedTuple):
    """An `<img>`."""

    caption: str
    """Its alt."""
    url: str
    """Absolute; empty if it has no address."""
    width: int | None
    height: int | None
    in_noscript: bool


class DomPage(NamedTuple):
    images: list[DomImage]
    """In their order."""
    figcaptions: set[str]
    """Without white space."""
    og_pictures: set[str]


def read_dom(page: bytes, http_charset: str | None, page_url: str) -> DomPage:
    """page: what came over the wire, unpacked."""
    text = _text_of(page, http_charset).replace("\0", "")
    # Scripts show what is in a template: it counts.
    document = HTMLTree.parse(re.sub(r"<(/?)template\b", r"<\1x-template", text)).document
    base = document.query_selector("base[href]")
    base_url = _absolute(page_url, base.getattr("href")) if base else page_url
    images = [_image(element, base_url) for element in document.query_selector_all("img, amp-img")]
    og = [_absolute(base_url, meta.getattr("content") or "") for meta in document.query_selector_all("meta")]
    for hidden in document.query_selector_all("script, style, noscript, textarea, iframe"):
        hidden.decompose()
    captions = {"".join(element.text.split()) for element in document.query_selector_all("figcaption")}
    return DomPage(images, captions, set(og))


def _text_of(page: bytes, http_charset: str | None) -> str:
    for mark, marked in ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be")):
        if page.startswith(mark):
            return page[len(mark) :].decode(marked, "replace")
    try:
        return page.decode()
    except UnicodeDecodeError:
        meta = _META_CHARSET.search(page[:4096])
        label = http_charset or (meta[1].decode() if meta else "windows-1252")
        return bytes_to_str(page, map_encoding_to_html5(label))


def _image(element: Any, base_url: str) -> DomImage:
    address = _address(element)
    is_in_noscript, parent = False, element.parent
    while parent is not None:
        is_in_noscript = is_in_noscript or parent.tag == "noscript"
        parent = parent.parent
    return DomImage(
        " ".join((element.getattr("alt") or "").split()),
        _absolute(base_url, address) if address else "",
        _pixels(element.getattr("width")),
        _pixels(element.getattr("height")),
        is_in_noscript,
    )


def _address(element: Any) -> str:
    """The largest of its own and of the `<source>`s before it in a `<picture>`."""
    found = _candidates(element)[:1]
    before = element.prev_element if element.parent is not None and element.parent.tag == "picture" else None
    sources = []
    while before is not None:
        kind = (before.getattr("type") or "").strip().lower()
        if before.tag == "source" and not kind.startswith(_NO_PHOTOGRAPHS):
            sources.append(_candidates(before)[:1])
        before = before.prev_element
    found += [one for source in reversed(sources) for one in source]
    return max(found, key=lambda one: one[1])[0] if found else ""


_Candidate = tuple[str, tuple[int, float]]


def _candidates(element: Any) -> list[_Candidate]:
    """The largest first; of those that a script loads, if there are any."""
    attributes = {name: (element[name] or "").strip(_SPACES) for name in element.attrs}
    lazy = [one for name in LAZY_SRCSETS for one in _srcset(attributes.get(name.decode(), ""))]
    for name in LAZY_ADDRESSES:
        address = attributes.get(name.decode(), "")
        if address and (name.decode() not in _AMBIGUOUS or _is_picture_name(address)):
            lazy.append((address, (0, 1.0)))
    plain = _srcset(attributes.get("srcset", ""))
    if attributes.get("src"):
        plain.append((attributes["src"], (0, 1.0)))
    for found in (lazy, plain):
        usable = [one for one in found if not one[0].lower().startswith("data:")]
        if usable:
            return sorted(usable, key=lambda one: one[1], reverse=True)
    likely = [
        (address, (0, 1.0))
        for name, address in attributes.items()
        if re.match(r"(https?:)?//[^\s{}\"'<>]+$", address, re.IGNORECASE)
        and ("src" in name or _is_picture_name(address))
        and not re.match(r"(alt|title|on.*)$", name)
    ]
    return likely[:1] or plain[-1:]


def _is_picture_name(address: str) -> bool:
    return re.search(r"\.(jpe?g|png|webp|gif|avif|bmp)$", re.split("[?#]", address)[0], re.IGNORECASE) is not None


def _srcset(text: str) -> list[_Candidate]:
    """By the steps of the HTML standard."""
    found, position = [], 0
    address_at = re.compile(r"[\s,]*(\S+)")
    while address := address_at.match(text, position):
        position = address.end()
        if address[1].endswith(","):
            found.append((address[1].rstrip(","), (0, 1.0)))
            continue
        depth, start = 0, position
        while position < len(text) and (text[position] != "," or depth):
            depth += {"(": 1, ")": -1}.get(text[position], 0)
            position += 1
        width, density = 0, 1.0
        for descriptor in text[start:position].split():
            if re.fullmatch(r"\d+w", descriptor):
                width = int(descriptor[:-1])
            elif re.fullmatch(r"\d*\.?\d+x", descriptor):
                density = float(descriptor[:-1])
        found.append((address[1], (width, density)))
    return found


def _absolute(base_url: str, address: str) -> str:
    """As a browser has it, without its fragment."""
    address = re.sub(r"[\t\n\r]", "", address.strip(_SPACES)).partition("#")[0]
    path, mark, query = address.partition("?")
    if not re.match(r"(?!https?:)[a-z][\w+.-]*:", path, re.IGNORECASE):
        address = path.replace("\\", "/") + mark + query
    try:
        joined = urljoin(_with_empty_segments_marked(base_url), _with_empty_segments_marked(address))
        scheme, host, path, query, _ = urlsplit(joined.replace("\1", ""))
        host = host if host.isascii() else host.encode("idna").decode()
    except (ValueError, UnicodeError):
        return address
    return urlunsplit((scheme, host, quote(path, _SAFE), quote(query, _SAFE), "")).replace("&amp;", "&")


def _with_empty_segments_marked(url: str) -> str:
    """`urljoin` drops them."""
    start = re.match(r"(?:[a-z][\w+.-]*:)?(?://[^/]*)?", url, re.IGNORECASE)
    return url[: start.end()] + re.sub(r"/(?=/)", "/\1", url[start.end() :]) if start else url


def _pixels(text: str | None) -> int | None:
    number = re.fullmatch(r"\s*(\d{1,5})(\.\d*)?\s*(px)?\s*", text or "")
    return int(number[1]) if number else None
