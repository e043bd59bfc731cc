"""Resolve an `src` attribute to an absolute address, as a browser does."""

from __future__ import annotations

import re
from functools import cached_property

from diptych_shards.web_address import SchemeError, absolute, is_plain, without_entities

MAX_URL_CHARACTERS = 2048
_MAX_GIVEN_CHARACTERS = 4 * MAX_URL_CHARACTERS
_AROUND = "".join(map(chr, range(0x21)))
_ORIGIN = re.compile(r"https?://[^/?#]*").match


class BadUrlError(ValueError):
    """`why` is one of empty, data, scheme, long, bad."""

    def __init__(self, why: str, url: str):
        super().__init__(f"{why}: {url[:100]!r}")
        self.why = why


class Resolver:
    """Resolves the addresses of one page, against its first `<base href>` if it has one."""

    def __init__(self, page_url: str, base_href: str | None = None):
        self._page_url = page_url
        self._base_href = base_href

    def resolve(self, url: str) -> str:
        """The absolute http(s) address, without its fragment, in ASCII.

        Raises:
            BadUrlError: it has none.
        """
        if not is_plain(url):
            url = self._base.resolve(url)
        if len(url) > MAX_URL_CHARACTERS:
            raise BadUrlError("long", url)
        return without_entities(url) if "&amp;" in url else url

    @cached_property
    def _base(self) -> _Base:
        """Not before an address needs it: on most pages none does."""
        base = _Base(None)
        for address in (self._page_url, self._base_href):
            try:
                base = base if address is None else _Base(base.resolve(address))
            except BadUrlError:
                pass  # as a browser does: the page's own address stays
        return base


class _Base:
    """What relative addresses are resolved against; None: there is nothing."""

    def __init__(self, address: str | None):
        self._address = address
        origin = _ORIGIN(address or "")
        self._origin = origin[0] if origin else ""
        self._scheme = self._origin.partition("/")[0]
        self._folder = (address or "").partition("?")[0].rpartition("/")[0] + "/"

    def resolve(self, url: str) -> str:
        if ":" not in url and url[:1] not in ("", "?"):
            # Most only have to be written after the base's scheme, origin or folder.
            before = self._folder if url[0] != "/" else self._scheme if url[:2] == "//" else self._origin
            joined = before + url
            if is_plain(joined):
                return joined
        url = url.strip(_AROUND)
        if url[:5].lower() == "data:":  # before anything that takes time: they are as long as pictures
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
    """The file's name in an absolute address."""
    if "?" in url:
        url = url[: url.index("?")]
    return url[url.rfind("/") + 1 :]
