"""From what stands in `src` to an address that any client can fetch, as a browser would make it."""

from __future__ import annotations

import re
from urllib.parse import quote

MAX_URL_CHARACTERS = 2048
_LONGEST_HOST = 253

_FINE = re.compile(r"https?://\w[\w-]*(?:\.[\w-]+)*(?::\d{1,5})?(?:[/?][!$-;=?-\[\]_a-z|~]*)?", re.ASCII)
_ORIGIN = re.compile(r"[^:]*://[^/?#]*")
_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*:")
_HTTP = re.compile(r"(https?):[/\\]*", re.IGNORECASE)
_AUTHORITY = re.compile(r"(https?://)((?:[^/?#@]*@)?)([^/?#:@\[\]]+|\[[0-9a-fA-F:.]+\])((?::\d*)?)([/?].*)?", re.DOTALL)
_HOST = re.compile(r"[\w-]+(?:\.[\w-]+)*\.?|\[[0-9a-fA-F:.]+\]", re.ASCII)
_DROPPED = str.maketrans("", "", "\t\n\r")
_AROUND = "".join(map(chr, range(0x21)))
_SAFE = "!$%&'()*+,/:;=?@[]_~|"


class BadUrlError(ValueError):
    """`why` is one of empty, data, scheme, long, bad."""

    def __init__(self, why: str, url: str):
        super().__init__(f"{why}: {url[:100]!r}")
        self.why = why


class Resolver:
    """Resolves the addresses of one page, against its first `<base href>` if it has one."""

    def __init__(self, page_url: str, base_href: str | None = None):
        self._base = page_url
        if base_href is not None:
            try:
                self._base = Resolver(page_url).resolve(base_href)
            except BadUrlError:
                pass  # as a browser does: the page's own address stays
        origin = _ORIGIN.match(self._base)
        self._origin = origin[0] if origin else ""
        self._scheme = self._base.partition(":")[0].lower()

    def resolve(self, url: str) -> str:
        """The absolute http(s) address, without its fragment, in ASCII.

        Raises:
            BadUrlError: it has none.
        """
        if not _FINE.fullmatch(url):
            url = self._absolute(url.strip(_AROUND))
        if len(url) > MAX_URL_CHARACTERS:
            raise BadUrlError("long", url)
        return url.replace("&amp;", "&") if "&amp;" in url else url

    def _absolute(self, url: str) -> str:
        if url[:5].lower() == "data:":  # before anything that takes time: they are as long as pictures
            raise BadUrlError("data", url)
        if len(url) > 4 * MAX_URL_CHARACTERS:
            raise BadUrlError("long", url)
        url = url.translate(_DROPPED).partition("#")[0]
        if not url:
            raise BadUrlError("empty", url)
        if "\\" in url:
            path, mark, query = url.partition("?")
            url = path.replace("\\", "/") + mark + query
        http = _HTTP.match(url)
        if http:
            # `http:/x` and `http:x` are relative by the old rules; no page means that.
            url = f"{http[1].lower()}://{url[http.end() :]}"
        elif _SCHEME.match(url):
            raise BadUrlError("scheme", url)
        elif url.startswith("//"):
            url = f"{self._scheme}:{url}"
        elif url[0] == "/" and "/." not in url:
            url = self._origin + url
        else:
            url = self._origin + self._path_from_base(url)
        return url if _FINE.fullmatch(url) else _in_ascii(url)

    def _path_from_base(self, url: str) -> str:
        """By RFC 3986, 5.2. Empty segments stay as in a browser, where `urljoin` drops them."""
        path, mark, query = url.partition("?")
        base = self._base[len(self._origin) :].partition("#")[0].partition("?")[0]
        if not path:
            return base + mark + query
        if path[0] != "/":
            path = f"{base.rpartition('/')[0]}/{path}"
        segments: list[str] = []
        for segment in path.split("/")[1:]:
            if segment == "..":
                del segments[-1:]
            elif segment != ".":
                segments.append(segment)
        if path.endswith(("/.", "/..")):
            segments.append("")
        return f"/{'/'.join(segments)}{mark}{query}"


def last_segment(url: str) -> str:
    """The file's name in an absolute address."""
    if "?" in url:
        url = url[: url.index("?")]
    return url[url.rfind("/") + 1 :]


def _in_ascii(url: str) -> str:
    parts = _AUTHORITY.fullmatch(url)
    if not parts:
        raise BadUrlError("bad", url)
    scheme, user, host, port, rest = parts.groups(default="")
    if not host.isascii():
        if len(host) > _LONGEST_HOST:  # a long one would take milliseconds to write in ASCII
            raise BadUrlError("bad", url)
        try:
            host = host.encode("idna").decode("ascii")
        except UnicodeError:
            raise BadUrlError("bad", url) from None
    if not _HOST.fullmatch(host):
        raise BadUrlError("bad", url)
    quoted = quote(rest, safe=_SAFE, errors="replace")
    return scheme + quote(user, safe=_SAFE, errors="replace") + host + port + quoted
