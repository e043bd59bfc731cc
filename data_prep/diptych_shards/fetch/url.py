"""URLs as they stand in tables, made into what a server is asked for, as a browser would."""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import AddressValueError, IPv6Address
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, unquote, urljoin

from diptych.errors import UserError
from diptych.files import read_text
from diptych_shards.fetch.address import is_port_allowed
from diptych_shards.fetch.outcome import FetchReason, UrlError

MAX_URL_BYTES = 8192

_PARTS = re.compile(r"(?i)(https?)://([^/?#]*)([^?#]*)(\?[^#]*)?")
_PLAIN_HOST = re.compile(r"[a-z0-9_][a-z0-9._-]*").fullmatch
_PLAIN_TARGET = re.compile(r"[A-Za-z0-9/._~!$&'()*+,;=:@%?|\[\]^\\-]*").fullmatch
_ADDRESS = re.compile(r"[0-9]{1,3}(?:\.[0-9]{1,3}){3}").fullmatch
_CONTROL = re.compile("[\x00-\x1f\x7f\ud800-\udfff]").search
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:").match
_LEFT_OVER_ENTITY = re.compile("&(?:amp;)+")
_DOTS = re.compile(r"(?i)/(?:\.|%2e){1,2}(?:/|$)").search
_DEFAULT_PORTS = {"http": 80, "https": 443}
# Beside letters and digits, what a browser sends as it is (the URL standard's path and query sets).
_SAFE_IN_PATH = "/._~!$&'()*+,;=:@%|[]-"
_SAFE_IN_QUERY = _SAFE_IN_PATH + "?^`{}"


class Url(NamedTuple):
    """Where to ask and what for, in ASCII."""

    scheme: str
    host: str
    """In lower case; an IPv6 address in brackets."""
    port: int
    target: str
    """Path and query."""

    @property
    def is_address(self) -> bool:
        """Whether the host needs no lookup."""
        return self.host.startswith("[") or _ADDRESS(self.host) is not None

    @property
    def origin(self) -> str:
        if self.port == _DEFAULT_PORTS[self.scheme]:
            return f"{self.scheme}://{self.host}"
        return f"{self.scheme}://{self.host}:{self.port}"

    def __str__(self) -> str:
        return self.origin + self.target


def parse_url(text: str, base: Url | None = None) -> Url:
    """The URL that a browser would ask for.

    White space around it, a fragment and a user's name and password are dropped; `&amp;` left over from HTML becomes
    `&`; `//host/path` is asked for by https. Addresses in odd spellings pass: they are looked at when connecting.

    base: where a relative reference was found, in a redirect.

    Raises:
        UrlError: if it is none, is too long, or names a scheme or a port that is not allowed.
    """
    text = text.strip(" \t\r\n\f")
    if len(text) > MAX_URL_BYTES:
        raise UrlError(FetchReason.bad_url, f"URL longer than {MAX_URL_BYTES} bytes")
    if _CONTROL(text):
        raise UrlError(FetchReason.bad_url, "control character in URL")
    if "&amp;" in text:
        text = _LEFT_OVER_ENTITY.sub("&", text)
    if base is not None:
        text = _join(base, text)
    elif text.startswith("//"):
        text = "https:" + text
    parts = _PARTS.match(text)
    if parts is None:
        raise _not_a_web_url(text)
    scheme = parts[1].lower()
    authority, path, query = parts[2], parts[3], parts[4] or ""
    if "\\" in authority or "\\" in path:
        authority, _, rest = (authority + path).replace("\\", "/").partition("/")
        path = "/" + rest
    host, port = _split_authority(authority, _DEFAULT_PORTS[scheme])
    target = _encode(path, query)
    if len(target) > MAX_URL_BYTES:
        raise UrlError(FetchReason.bad_url, f"URL longer than {MAX_URL_BYTES} bytes")
    return Url(scheme, host, port, target)


def read_domains(path: Path) -> frozenset[str]:
    """The domains of a block list: one a line, `#` starts a comment.

    Raises:
        ValueError: for a line that is no domain; the file cannot be read.
    """
    domains = set()
    for number, line in enumerate(read_text(path, "name a file of domains").splitlines(), start=1):
        domain = line.partition("#")[0].strip()
        if not domain:
            continue
        try:
            domains.add(normalise_domain(domain))
        except UrlError:
            raise UserError(f"{path}, line {number}: {domain!r} is not a domain such as example.com") from None
    return frozenset(domains)


def normalise_domain(domain: str) -> str:
    """The domain as it stands in a `Url`, without dots or `*.` around it. Raises: UrlError if it is none."""
    return _normalise_host(domain.removeprefix("*").strip(".")).rstrip(".")


def is_within(host: str, domains: Iterable[str]) -> bool:
    """Whether the host is one of these domains or lies below one. domains: best a set, of normalised ones."""
    host = host.rstrip(".")
    while host:
        if host in domains:
            return True
        host = host.partition(".")[2]
    return False


def _not_a_web_url(text: str) -> UrlError:
    scheme = _SCHEME(text)
    if scheme is None or scheme[0].lower() in ("http:", "https:"):
        return UrlError(FetchReason.bad_url, "not a URL")
    return UrlError(FetchReason.scheme_not_allowed, "only http and https are fetched")


def _join(base: Url, reference: str) -> str:
    try:
        return urljoin(str(base), reference.replace("\\", "/"))
    except ValueError:
        raise UrlError(FetchReason.bad_url, "not a URL") from None


def _split_authority(authority: str, default_port: int) -> tuple[str, int]:
    authority = authority.rpartition("@")[2]
    host, colon, digits = authority, "", ""
    if not authority.endswith("]"):
        host, colon, digits = authority.rpartition(":")
        if not colon:
            host, digits = authority, ""
    port = default_port
    if digits:
        if not (digits.isascii() and digits.isdigit() and len(digits) < 10 and int(digits) <= 65535):
            raise UrlError(FetchReason.bad_url, "bad port in URL")
        port = int(digits)
    host = _normalise_host(host)
    if not is_port_allowed(port):
        raise UrlError(FetchReason.port_not_allowed, "port not allowed: neither 80, 443 nor above 1023")
    return host, port


def _normalise_host(host: str) -> str:
    host = host.lower()
    if _PLAIN_HOST(host) and len(host) <= 254 and ".." not in host:
        return host
    if host.startswith("["):
        return _ipv6(host)
    import idna  # not at the top: its tables cost 10 ms, and most hosts are ASCII

    try:
        if "%" in host:
            host = unquote(host, errors="strict")
        host = idna.encode(host, uts46=True).decode("ascii").lower()
    except (idna.IDNAError, UnicodeError):
        host = ""
    if not _PLAIN_HOST(host) or len(host) > 254:
        raise UrlError(FetchReason.bad_url, "bad host name in URL")
    return host


def _ipv6(host: str) -> str:
    try:
        return f"[{IPv6Address(host[1:-1] if host.endswith(']') else '')}]"
    except AddressValueError:
        raise UrlError(FetchReason.bad_url, "bad host name in URL") from None


def _encode(path: str, query: str) -> str:
    if not path.startswith("/"):
        path = "/" + path
    if _DOTS(path):
        path = _without_dots(path)
    if not _PLAIN_TARGET(path) or "^" in path:
        path = quote(path, safe=_SAFE_IN_PATH)
    if not _PLAIN_TARGET(query):
        query = quote(query, safe=_SAFE_IN_QUERY)
    return path + query


def _without_dots(path: str) -> str:
    """The path with `.` and `..` resolved, so that robots.txt is asked about what the server is asked for."""
    kept: list[str] = []
    segments = path.split("/")[1:]
    for segment in segments:
        plain = segment.lower().replace("%2e", ".")
        if plain == "..":
            del kept[-1:]
        elif plain != ".":
            kept.append(segment)
    if segments[-1].lower().replace("%2e", ".") in (".", ".."):
        kept.append("")
    return "/" + "/".join(kept)
