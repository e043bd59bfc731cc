"""How URLs are fetched: how politely, how patiently, and what is refused."""

from __future__ import annotations

import math
import ssl
from dataclasses import dataclass

from diptych import __version__
from diptych.errors import UserError
from diptych_shards.fetch.address_gate import parse_networks
from diptych_shards.fetch.permission import RESERVATION, product_token

OPT_OUT_DIRECTIVES = ("noai", "noimageai", "noml", "noindex", "noimageindex", RESERVATION)
"""The directives obeyed by default: `extract` obeys those of pages, `build` those of pictures."""

DEFAULT_USER_AGENT = f"diptych-shards/{__version__}"
"""The User-Agent header. It starts with our name in a robots.txt."""


@dataclass(frozen=True, kw_only=True)
class FetchOptions:
    """How to fetch.

    Raises:
        UserError: a value is out of range.
    """

    user_agent: str = DEFAULT_USER_AGENT
    """Starts with our name in robots.txt and X-Robots-Tag; add a contact: `mybot/1.0 (+https://…)`."""
    timeout_seconds: float = 30.0
    """How long a URL may be in transfer, with redirects and retries; waiting for its turn does not count."""
    connect_timeout_seconds: float = 10.0
    """For the lookup of the name, the connection and TLS."""
    min_bytes_per_second: float = 1000.0
    max_bytes: int = 20 * 2**20
    """The limit for a body, both as received and after unpacking."""
    retries: int = 2
    """After failures that may pass: no name, no connection, an answer that breaks off, 429, 500, 502, 503, 504."""
    patience_seconds: float = 30.0
    """How long to wait for a site that sends no answers, or only errors, before it is given up."""
    max_retry_after_seconds: float = 60.0
    """If a site asks for a longer pause, its URLs fail."""
    in_flight: int = 256
    per_host: int = 8
    """Requests at a time to one scheme, host and port."""
    look_ahead: int = 8192
    """How many URLs may wait for busy hosts, so that URLs of other hosts behind them can be fetched."""
    allow_networks: tuple[str, ...] = ()
    """Networks in CIDR notation, or `localhost`, that may be connected to although they are not public."""
    ca_file: str | None = None
    """Certificates (PEM) to trust in place of the usual authorities'."""
    respect_robots_txt: bool = True
    opt_out_directives: tuple[str, ...] = OPT_OUT_DIRECTIVES
    """X-Robots-Tag directives that make us refuse a picture; an empty tuple disables the check."""
    blocked_domains: frozenset[str] = frozenset()
    """URLs of these domains, and of all domains below them, are refused; `url.read_domains` reads a list."""

    def __post_init__(self) -> None:
        for network in self.allow_networks:
            parse_networks(network)
        self.check_certificates()
        for name in ("timeout_seconds", "connect_timeout_seconds", "max_bytes", "in_flight", "per_host", "look_ahead"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"{name} is {getattr(self, name)}; it must be above 0, and finite")
        for name in ("min_bytes_per_second", "retries", "patience_seconds", "max_retry_after_seconds"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"{name} is {getattr(self, name)}; it must be 0 or more, and finite")
        if not self.user_agent.isascii() or not self.user_agent.isprintable() or not product_token(self.user_agent):
            raise UserError(f"user_agent {self.user_agent!r} must be a name in ASCII such as mybot/1.0")

    def check_certificates(self) -> None:
        """Check that `ca_file` contains certificates, on this machine.

        Raises:
            UserError: it does not.
        """
        if self.ca_file is None:
            return
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(self.ca_file)
        except OSError as error:
            message = f"ca_file {self.ca_file!r} is not a file of certificates in PEM ({error.strerror})"
            raise UserError(message) from None
