"""What becomes of a URL: its bytes, or the reason why there are none."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from http import HTTPStatus


class FetchReason(Enum):
    """Why a URL gave no bytes. An answer with another status than 200 has `http_` and its status as reason."""

    BAD_URL = "bad_url"
    SCHEME_NOT_ALLOWED = "scheme_not_allowed"
    PORT_NOT_ALLOWED = "port_not_allowed"
    BLOCKED_DOMAIN = "blocked_domain"
    ADDRESS_NOT_PUBLIC = "address_not_public"
    ROBOTS_TXT = "robots_txt"
    OPT_OUT = "opt_out"
    HOST_GIVEN_UP = "host_given_up"
    DNS_FAILED = "dns_failed"
    CONNECT_FAILED = "connect_failed"
    CONNECT_TIMEOUT = "connect_timeout"
    TLS_FAILED = "tls_failed"
    CONNECTION_RESET = "connection_reset"
    NO_ANSWER = "no_answer"
    BAD_ANSWER = "bad_answer"
    HEADERS_TOO_LARGE = "headers_too_large"
    HEADERS_TOO_SLOW = "headers_too_slow"
    TOO_SLOW = "too_slow"
    TIMEOUT = "timeout"
    TOO_MANY_REDIRECTS = "too_many_redirects"
    TOO_MANY_BYTES = "too_many_bytes"
    TOO_MANY_BYTES_UNPACKED = "too_many_bytes_unpacked"
    BAD_ENCODING = "bad_encoding"
    TRUNCATED_BODY = "truncated_body"
    EMPTY_BODY = "empty_body"


@dataclass(frozen=True)
class Fetched:
    """The body of an answer, unchecked."""

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


BLOCKED = FetchFailure(FetchReason.BLOCKED_DOMAIN.value, "blocked domain")
DISALLOWED = FetchFailure(FetchReason.ROBOTS_TXT.value, "disallowed by robots.txt")
ROBOTS_UNREACHABLE = FetchFailure(FetchReason.ROBOTS_TXT.value, "robots.txt unreachable")
TOO_MANY_REDIRECTS = FetchFailure(FetchReason.TOO_MANY_REDIRECTS.value, "too many redirects")
WAITED_TOO_LONG = FetchFailure(FetchReason.TIMEOUT.value, "waited too long for pauses of the host")

OUT_OF_ORDER = (500, 502, 503, 504)
"""Statuses that report an error of the server."""
_NO_CONNECTION = frozenset(
    reason.value
    for reason in (
        FetchReason.ADDRESS_NOT_PUBLIC,
        FetchReason.DNS_FAILED,
        FetchReason.CONNECT_FAILED,
        FetchReason.CONNECT_TIMEOUT,
        FetchReason.TLS_FAILED,
        FetchReason.CONNECTION_RESET,
        FetchReason.NO_ANSWER,
        FetchReason.HEADERS_TOO_SLOW,
    )
)
_WORTH_REPEATING = frozenset(
    {
        FetchReason.DNS_FAILED.value,
        FetchReason.CONNECT_FAILED.value,
        FetchReason.CONNECT_TIMEOUT.value,
        FetchReason.CONNECTION_RESET.value,
        FetchReason.NO_ANSWER.value,
        FetchReason.TRUNCATED_BODY.value,
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
    return reason == FetchReason.ADDRESS_NOT_PUBLIC.value or (
        reason == FetchReason.TLS_FAILED.value and not has_answered
    )


def is_worth_repeating(failure: FetchFailure) -> bool:
    """Whether another attempt may succeed."""
    return failure.reason in _WORTH_REPEATING


def means_no_robots(failure: FetchFailure) -> bool:
    """Whether this failure of a robots.txt means that the site has none; any other failure forbids the whole site.

    See RFC 9309, section 2.3.1.
    """
    if failure.reason == FetchReason.TOO_MANY_REDIRECTS.value:
        return True
    return failure.reason.startswith("http_4") and failure.reason != "http_429"


def robots_verdict(failure: FetchFailure, *, was_redirected: bool) -> FetchFailure:
    """Why a site's URLs fail if its robots.txt cannot be fetched: for the same reason, if the site is unreachable."""
    return failure if failure.reason in _NO_CONNECTION and not was_redirected else ROBOTS_UNREACHABLE
