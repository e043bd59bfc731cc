"""http(s) addresses as a browser writes them, by the URL standard (https://url.spec.whatwg.org)."""

from __future__ import annotations

import re

import ada_url

_PLAIN = re.compile(
    r"(https?)://((?:[a-z0-9_-]+\.)*[a-z][a-z0-9_-]*)"  # no number at the end: that may be an IPv4 address
    r"(/[!$-;=@-\[\]_a-z|~]*(?:\?[!$-&(-;=?-\[\]_a-z|~]*)?)"
).fullmatch
_PARTS = re.compile(r"(https?)://(?:[^/?@]*@)?([^/?:@\[]+|\[[0-9a-f:.]+\])(?::([0-9]+))?([/?].*)").fullmatch
_HOST = re.compile(r"[a-z0-9_-]+(?:\.[a-z0-9_-]+)*\.?|\[[0-9a-f:.]+\]").fullmatch
_MAX_HOST = 254
_MAX_LABEL = 63
_SCHEME = re.compile(r"[\x00-\x20]*([A-Za-z][A-Za-z0-9+.-]*):").match
_LEFT_OVER_ENTITY = re.compile("&(?:amp;)+")


class SchemeError(ValueError):
    """An address of another scheme than http and https."""


def is_plain(address: str) -> bool:
    """Whether a browser would leave it as it is, which is true of most, and found in a tenth of the time."""
    return _PLAIN(address) is not None and "/." not in address and "/%2" not in address


def split_plain(address: str) -> tuple[str, str, str]:
    """Scheme, host, and path with query of a plain address."""
    match = _PLAIN(address)
    assert match is not None
    return match[1], match[2], match[3]


def absolute(text: str, base: str | None = None) -> str:
    """The address in ASCII, without a fragment; `&amp;` left over from HTML becomes `&`.

    base: the absolute address that a relative one is resolved against.

    Raises:
        SchemeError: neither http nor https.
        ValueError: no address, or none with a host that DNS could know.
    """
    if "&amp;" in text:
        text = without_entities(text)
    scheme = _SCHEME(text)
    if scheme is not None and scheme[1].lower() not in ("http", "https"):
        raise SchemeError("only http and https are fetched")
    href = ada_url.normalize_url(text) if base is None else ada_url.join_url(base, text)
    href = href.partition("#")[0]
    if not href.startswith(("http:", "https:")):
        raise SchemeError("only http and https are fetched")
    split(href)
    return href


def split(address: str) -> tuple[str, str, int | None, str]:
    """Scheme, host, port (None: the scheme's own) and path with query of what `absolute` gives.

    Raises:
        ValueError: the host is none that DNS could know.
    """
    parts = _PARTS(address)
    if parts is None or not is_host(parts[2]):
        raise ValueError("bad host name in URL")
    return parts[1], parts[2], None if parts[3] is None else int(parts[3]), parts[4]


def is_host(name: str) -> bool:
    """Whether it may be a host in an address: a name, or an address in its usual form."""
    if len(name) > _MAX_HOST or _HOST(name) is None:
        return False
    return "xn--" not in name or all(len(label) <= _MAX_LABEL for label in name.split("."))


def without_entities(text: str) -> str:
    """The text with `&` for each `&amp;` that is left over from HTML."""
    return _LEFT_OVER_ENTITY.sub("&", text)
