"""Parse the URLs of tables as a browser would, and lists of domains."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from diptych.errors import UserError
from diptych.files import read_text
from diptych_shards.fetch.address_gate import is_port_allowed
from diptych_shards.fetch.outcome import FetchReason, UrlError
from diptych_shards.web_address import SchemeError, absolute, is_plain, split, split_plain

MAX_URL_BYTES = 8192

_ADDRESS = re.compile(r"[0-9]{1,3}(?:\.[0-9]{1,3}){3}").fullmatch
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]").search  # all but tabs and line ends, which are dropped
_DEFAULT_PORTS = {"http": 80, "https": 443}
_SLASHES = ("/", "\\")
_END_OF_HOST = re.compile(r"[/\\?#@:]").search


class Url(NamedTuple):
    """A parsed URL, in ASCII."""

    scheme: str
    host: str
    """In lower case; an IPv6 address in brackets."""
    port: int
    target: str
    """Path and query."""

    @property
    def is_address(self) -> bool:
        """Whether the host is an IP address, which needs no lookup."""
        return self.host.startswith("[") or _ADDRESS(self.host) is not None

    @property
    def origin(self) -> str:
        """Scheme, host and port; without the port if it is the scheme's usual one."""
        if self.port == _DEFAULT_PORTS[self.scheme]:
            return f"{self.scheme}://{self.host}"
        return f"{self.scheme}://{self.host}:{self.port}"

    def __str__(self) -> str:
        return self.origin + self.target


def parse_url(text: str, base: Url | None = None) -> Url:
    """Parse a URL into what a browser would request.

    The fragment, user name and password are dropped; `//host/path` means https. An IP address in an odd spelling is
    put into its usual form; whether it may be connected to is checked when that is done.

    base: the URL that a relative reference, in a redirect, is resolved against.

    Raises:
        UrlError: it is not a URL, is too long, or has a scheme or a port that is not allowed.
    """
    text = text.strip(" \t\r\n\f")
    if len(text) > MAX_URL_BYTES:
        raise _too_long()
    if is_plain(text) and "&amp;" not in text:
        scheme, host, target = split_plain(text)
        return Url(scheme, host, _DEFAULT_PORTS[scheme], target)
    if base is None and text[:1] in _SLASHES and text[1:2] in _SLASHES:
        text = "https:" + text
    if _CONTROL(text):
        raise UrlError(FetchReason.BAD_URL, "control character in URL")
    try:
        scheme, host, port, target = split(absolute(text, str(base) if base is not None else None))
    except SchemeError as error:
        raise UrlError(FetchReason.SCHEME_NOT_ALLOWED, str(error)) from None
    except ValueError:
        raise UrlError(FetchReason.BAD_URL, "not a URL") from None
    if len(target) > MAX_URL_BYTES:
        raise _too_long()
    if port is None:
        port = _DEFAULT_PORTS[scheme]
    if not is_port_allowed(port):
        raise UrlError(FetchReason.PORT_NOT_ALLOWED, "port not allowed: neither 80, 443 nor above 1023")
    return Url(scheme, host, port, target)


def read_domains(path: Path) -> frozenset[str]:
    """Read a block list of domains: one on each line; `#` starts a comment.

    Raises:
        UserError: a line is not a domain, or the file cannot be read.
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
    """Write a domain as the host of a `Url` is written, without dots or `*.` around it.

    Raises:
        UrlError: it is not a domain.
    """
    name = domain.removeprefix("*").strip(".")
    try:
        if _END_OF_HOST(name) and not name.startswith("["):
            raise ValueError
        return parse_url(f"http://{name}/").host.rstrip(".")
    except ValueError:
        raise UrlError(FetchReason.BAD_URL, "bad host name in URL") from None


def is_within(host: str, domains: Iterable[str]) -> bool:
    """Whether the host is one of these domains or below one. domains: normalised ones, best in a set."""
    host = host.rstrip(".")
    while host:
        if host in domains:
            return True
        host = host.partition(".")[2]
    return False


def _too_long() -> UrlError:
    return UrlError(FetchReason.BAD_URL, f"URL longer than {MAX_URL_BYTES} bytes")
