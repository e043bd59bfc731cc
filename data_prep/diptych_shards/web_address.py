"""Write and resolve http(s) addresses as a browser does, by the URL standard (https://url.spec.whatwg.org)."""

from __future__ import annotations

import re
from functools import cached_property

import ada_url

MAX_URL_CHARACTERS = 2048
_MAX_GIVEN_CHARACTERS = 4 * MAX_URL_CHARACTERS
_AROUND = "".join(map(chr, range(0x21)))
_ORIGIN = re.compile(r"https?://[^/?#]*").match
_PLAIN = re.compile(
    r"(https?)://((?:[a-z0-9_-]+\.)*[a-z][a-z0-9_-]*)"  # no number at the end, which may be that of an IPv4 address
    r"(/[!$-;=@-\[\]_a-z|~]*(?:\?[!$-&(-;=?-\[\]_a-z|~]*)?)"
).fullmatch
_PARTS = re.compile(r"(https?)://(?:[^/?@]*@)?([^/?:@\[]+|\[[0-9a-f:.]+\])(?::([0-9]+))?([/?].*)").fullmatch
_HOST = re.compile(r"[a-z0-9_-]+(?:\.[a-z0-9_-]+)*\.?|\[[0-9a-f:.]+\]").fullmatch
_MAX_HOST = 254
_MAX_LABEL = 63
_SCHEME = re.compile(r"[\x00-\x20]*([A-Za-z][A-Za-z0-9+.-]*):").match
_LEFT_OVER_ENTITY = re.compile("&(?:amp;)+")


class SchemeError(ValueError):
    """The address has another scheme than http and https."""


def is_plain(address: str) -> bool:
    """Whether a browser would leave the address as it is; most are such, and need not be parsed."""
    return _PLAIN(address) is not None and "/." not in address and "/%2" not in address


def split_plain(address: str) -> tuple[str, str, str]:
    """Scheme, host, and path with query of a plain address."""
    match = _PLAIN(address)
    assert match is not None
    return match[1], match[2], match[3]


def absolute(text: str, base: str | None = None) -> str:
    """Write an address in ASCII, without its fragment; `&amp;` left over from HTML becomes `&`.

    base: the absolute address that a relative one is resolved against.

    Raises:
        SchemeError: it is neither http nor https.
        ValueError: it is not an address, or its host is not a name that DNS can have.
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
    """Scheme, host, port (None: the scheme's own) and path with query of a result of `absolute`.

    Raises:
        ValueError: its host is not a name that DNS can have.
    """
    parts = _PARTS(address)
    if parts is None or not is_host(parts[2]):
        raise ValueError("bad host name in URL")
    return parts[1], parts[2], None if parts[3] is None else int(parts[3]), parts[4]


def is_host(name: str) -> bool:
    """Whether it may be the host of an address: a name, or an IP address in its usual form."""
    if len(name) > _MAX_HOST or _HOST(name) is None:
        return False
    return "xn--" not in name or all(len(label) <= _MAX_LABEL for label in name.split("."))


def without_entities(text: str) -> str:
    """Replace each `&amp;` that is left over from HTML by `&`."""
    return _LEFT_OVER_ENTITY.sub("&", text)


class BadUrlError(ValueError):
    """The address cannot be used; `why` is one of empty, data, scheme, long, bad."""

    def __init__(self, why: str, url: str):
        super().__init__(f"{why}: {url[:100]!r}")
        self.why = why


class BaseUrl:
    """What the addresses of one page are relative to: its own address, or its first `<base href>`."""

    def __init__(self, page_url: str, base_href: str | None = None):
        self._page_url = page_url
        self._base_href = base_href

    def resolve(self, url: str) -> str:
        """Resolve to an absolute http(s) address in ASCII, without its fragment.

        Raises:
            BadUrlError: it cannot be resolved.
        """
        if not is_plain(url):
            url = self._base.resolve(url)
        if len(url) > MAX_URL_CHARACTERS:
            raise BadUrlError("long", url)
        return without_entities(url) if "&amp;" in url else url

    @cached_property
    def _base(self) -> _Base:
        """Made when an address first needs it: on most pages none does."""
        base = _Base(None)
        for address in (self._page_url, self._base_href):
            try:
                base = base if address is None else _Base(base.resolve(address))
            except BadUrlError:
                pass  # as in a browser, the page's own address is the base
        return base


class _Base:
    """What relative addresses are resolved against; address: None if there is no base."""

    def __init__(self, address: str | None):
        self._address = address
        origin = _ORIGIN(address or "")
        self._origin = origin[0] if origin else ""
        self._scheme = self._origin.partition("/")[0]
        self._folder = (address or "").partition("?")[0].rpartition("/")[0] + "/"

    def resolve(self, url: str) -> str:
        if ":" not in url and url[:1] not in ("", "?"):
            # Most only need the base's scheme, origin or folder before them.
            before = self._folder if url[0] != "/" else self._scheme if url[:2] == "//" else self._origin
            joined = before + url
            if is_plain(joined):
                return joined
        url = url.strip(_AROUND)
        if url[:5].lower() == "data:":  # checked before anything that takes time: it is as long as a picture
            raise BadUrlError("data", url)
        if len(url) > _MAX_GIVEN_CHARACTERS:
            raise BadUrlError("long", url)
        if not url.partition("#")[0]:
            raise BadUrlError("empty", url)
        try:
            return absolute(url, self._address)
        except SchemeError:
            raise BadUrlError("scheme", url) from None
        except ValueError:
            raise BadUrlError("bad", url) from None


def last_segment(url: str) -> str:
    """The name of the file in an absolute address."""
    if "?" in url:
        url = url[: url.index("?")]
    return url[url.rfind("/") + 1 :]
