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
"""What is obeyed unless the user says otherwise: of pages by `extract`, of pictures by `build`."""


DEFAULT_USER_AGENT = f"diptych-shards/{__version__}"
"""The User-Agent header: the program, by a name that robots.txt can use."""


@dataclass(frozen=True, kw_only=True)
class FetchOptions:
    """How to fetch.

    Raises:
        UserError: a value is out of its range.
    """

    user_agent: str = DEFAULT_USER_AGENT
    """Begins with the name that robots.txt and X-Robots-Tag call us by; add an address: `mybot/1.0 (+https://…)`."""
    timeout_seconds: float = 30.0
    """For which a URL may be in transfer, redirects and repetitions included; waiting for its turn does not count."""
    connect_timeout_seconds: float = 10.0
    """For name, connection and TLS."""
    min_bytes_per_second: float = 1000.0
    max_bytes: int = 20 * 2**20
    """On the wire, and again after unpacking."""
    retries: int = 2
    """Of what may go better the next time: no name, no connection, broken off, 429, 500, 502, 503, 504."""
    patience_seconds: float = 30.0
    """For which a site is waited for that gives no answer, or only errors, before it is given up."""
    max_retry_after_seconds: float = 60.0
    """A site that asks for a longer pause is left alone, and its URLs fail."""
    in_flight: int = 256
    per_host: int = 8
    """Requests at a time to one scheme, host and port."""
    look_ahead: int = 8192
    """URLs that may wait because their hosts are busy, while those of other hosts behind them are fetched."""
    allow_networks: tuple[str, ...] = ()
    """Networks in CIDR notation, or `localhost`, that may be connected to although they are not public."""
    ca_file: str | None = None
    """Certificates (PEM) to trust in place of the usual authorities'."""
    respect_robots_txt: bool = True
    opt_out_directives: tuple[str, ...] = OPT_OUT_DIRECTIVES
    """X-Robots-Tag directives by which a picture is refused; none disables the check."""
    blocked_domains: frozenset[str] = frozenset()
    """These domains and all below them; `url.read_domains` reads a list."""

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
        """Check that `ca_file` holds certificates on this machine.

        Raises:
            UserError: it does not.
        """
        if self.ca_file is None:
            return
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(self.ca_file)
        except OSError as error:
            told = f"ca_file {self.ca_file!r} is not a file of certificates in PEM ({error.strerror})"
            raise UserError(told) from None
