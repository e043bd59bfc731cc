"""What becomes of a URL: its bytes, or the reason why there are none."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from http import HTTPStatus


class FetchReason(Enum):
    """Why a URL gave no bytes. An answer with another status than 200 has the reason `http_404`, with its number."""

    bad_url = "bad_url"
    scheme_not_allowed = "scheme_not_allowed"
    port_not_allowed = "port_not_allowed"
    blocked_domain = "blocked_domain"
    address_not_public = "address_not_public"
    robots_txt = "robots_txt"
    opt_out = "opt_out"
    host_given_up = "host_given_up"
    dns_failed = "dns_failed"
    connect_failed = "connect_failed"
    connect_timeout = "connect_timeout"
    tls_failed = "tls_failed"
    connection_reset = "connection_reset"
    no_answer = "no_answer"
    bad_answer = "bad_answer"
    headers_too_large = "headers_too_large"
    headers_too_slow = "headers_too_slow"
    too_slow = "too_slow"
    timeout = "timeout"
    too_many_redirects = "too_many_redirects"
    too_many_bytes = "too_many_bytes"
    too_many_bytes_unpacked = "too_many_bytes_unpacked"
    bad_encoding = "bad_encoding"
    truncated_body = "truncated_body"
    empty_body = "empty_body"


@dataclass(frozen=True)
class Fetched:
    """The body of an answer, whatever it holds."""

    data: bytes
    url: str
    """Where it was found, after redirects."""


@dataclass(frozen=True)
class FetchFailure:
    """A URL that gave no bytes."""

    reason: str
    """The value of a `FetchReason`, or `http_` and a status."""
    message: str
    """For the table of results; names no host and no number that would make each message its own kind."""


def body_bytes(outcome: Fetched | FetchFailure) -> int:
    return len(outcome.data) if isinstance(outcome, Fetched) else 0


class UrlError(ValueError):
    """A URL that is not asked for."""

    def __init__(self, reason: FetchReason, message: str):
        super().__init__(message)
        self.failure = FetchFailure(reason.value, message)


def status_failure(status: int) -> FetchFailure:
    """An answer with a status other than 200, in the words of urllib, which scripts look for."""
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = "Unknown"
    return FetchFailure(f"http_{status}", f"HTTP Error {status}: {phrase}")
