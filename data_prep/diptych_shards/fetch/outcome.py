"""What becomes of a URL: its bytes, or the reason why there are none."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from http import HTTPStatus


class FetchReason(Enum):
    """Why a URL gave no bytes. An answer with another status than 200 has `http_` and its status as reason."""

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
    """The body of an answer, whatever it contains."""

    data: bytes
    url: str
    """The URL that gave it, after redirects."""


@dataclass(frozen=True)
class FetchFailure:
    """A URL that gave no bytes."""

    reason: str
    """The value of a `FetchReason`, or `http_` and a status."""
    message: str
    """For the table of results. It contains no host names or numbers, so that equal failures have equal messages."""


class UrlError(ValueError):
    """A URL that is not requested."""

    def __init__(self, reason: FetchReason, message: str):
        super().__init__(message)
        self.failure = FetchFailure(reason.value, message)


BLOCKED = FetchFailure(FetchReason.blocked_domain.value, "blocked domain")
DISALLOWED = FetchFailure(FetchReason.robots_txt.value, "disallowed by robots.txt")
ROBOTS_UNREACHABLE = FetchFailure(FetchReason.robots_txt.value, "robots.txt unreachable")
TOO_MANY_REDIRECTS = FetchFailure(FetchReason.too_many_redirects.value, "too many redirects")
WAITED_TOO_LONG = FetchFailure(FetchReason.timeout.value, "waited too long for pauses of the host")

OUT_OF_ORDER = (500, 502, 503, 504)
"""Statuses that report an error of the server."""
_NO_CONNECTION = frozenset(
    reason.value
    for reason in (
        FetchReason.address_not_public,
        FetchReason.dns_failed,
        FetchReason.connect_failed,
        FetchReason.connect_timeout,
        FetchReason.tls_failed,
        FetchReason.connection_reset,
        FetchReason.no_answer,
        FetchReason.headers_too_slow,
    )
)
_WORTH_REPEATING = frozenset(
    {
        FetchReason.dns_failed.value,
        FetchReason.connect_failed.value,
        FetchReason.connect_timeout.value,
        FetchReason.connection_reset.value,
        FetchReason.no_answer.value,
        FetchReason.truncated_body.value,
        *(f"http_{status}" for status in (429, *OUT_OF_ORDER)),
    }
)


def body_bytes(outcome: Fetched | FetchFailure) -> int:
    """The size of the body; 0 for a failure."""
    return len(outcome.data) if isinstance(outcome, Fetched) else 0


def status_failure(status: int) -> FetchFailure:
    """The failure for a status other than 200. Its message is worded as urllib's, which scripts search for."""
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = "Unknown"
    return FetchFailure(f"http_{status}", f"HTTP Error {status}: {phrase}")


def fails_all_urls(failure: FetchFailure, *, has_answered: bool) -> bool:
    """Whether all URLs of the site will fail in the same way. has_answered: whether the site ever answered."""
    reason = failure.reason
    return reason == FetchReason.address_not_public.value or (
        reason == FetchReason.tls_failed.value and not has_answered
    )


def is_worth_repeating(failure: FetchFailure) -> bool:
    """Whether another attempt may succeed."""
    return failure.reason in _WORTH_REPEATING


def means_no_robots(failure: FetchFailure) -> bool:
    """Whether this failure of a robots.txt means that the site has none; any other failure forbids the whole site.

    See RFC 9309, section 2.3.1.
    """
    if failure.reason == FetchReason.too_many_redirects.value:
        return True
    return failure.reason.startswith("http_4") and failure.reason != "http_429"


def robots_verdict(failure: FetchFailure, *, was_redirected: bool) -> FetchFailure:
    """Why a site's URLs fail if its robots.txt cannot be fetched: for the same reason, if the site is unreachable."""
    return failure if failure.reason in _NO_CONNECTION and not was_redirected else ROBOTS_UNREACHABLE
