"""What an answer means: a body, a failure, or another place to look."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime

from diptych_shards.fetch.http_format import unpack
from diptych_shards.fetch.outcome import Fetched, FetchFailure, FetchReason, UrlError, status_failure
from diptych_shards.fetch.transfer import Transfer
from diptych_shards.fetch.url import Url, parse_url

OPTED_OUT = FetchFailure(FetchReason.opt_out.value, "Use of image disallowed by X-Robots-Tag directive")
BLOCKED = FetchFailure(FetchReason.blocked_domain.value, "blocked domain")
DISALLOWED = FetchFailure(FetchReason.robots_txt.value, "disallowed by robots.txt")
ROBOTS_UNREACHABLE = FetchFailure(FetchReason.robots_txt.value, "robots.txt unreachable")
TOO_MANY_REDIRECTS = FetchFailure(FetchReason.too_many_redirects.value, "too many redirects")
TOO_MANY_BYTES = FetchFailure(FetchReason.too_many_bytes.value, "too many bytes")
WAITED_TOO_LONG = FetchFailure(FetchReason.timeout.value, "waited too long for pauses of the host")
EMPTY = FetchFailure(FetchReason.empty_body.value, "empty body")

_OUT_OF_ORDER = (500, 502, 503, 504)
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
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
        *(f"http_{status}" for status in (429, *_OUT_OF_ORDER)),
    }
)
_WRONG_ANSWERS = frozenset({FetchReason.bad_answer, FetchReason.headers_too_large})


@dataclass(frozen=True)
class Pause:
    """A site's wish to be left alone."""

    failure: FetchFailure
    seconds: float | None
    """None where it does not say for how long."""


def read_answer(transfer: Transfer, url: Url, *, is_opted_out: bool) -> Fetched | FetchFailure | Url:
    """What came for a picture, why nothing did, or the URL to ask for instead."""
    if transfer.status == 200 and is_opted_out:
        return OPTED_OUT
    outcome = _read(transfer, url)
    return EMPTY if isinstance(outcome, Fetched) and not outcome.data else outcome


def read_robots_answer(transfer: Transfer, url: Url) -> Fetched | FetchFailure | Url:
    """The same for robots.txt, which may be empty, and of which a part is enough."""
    return _read(transfer, url)


def asked_pause(transfer: Transfer) -> Pause | None:
    """The pause that a 429 asks for, or a 503 that says how long."""
    seconds = retry_after_seconds(transfer.headers.retry_after if transfer.headers else None)
    if transfer.status == 429 or (transfer.status == 503 and seconds is not None):
        return Pause(status_failure(transfer.status), seconds)
    return None


def retry_after_seconds(value: str | None, *, now: datetime | None = None) -> float | None:
    """What a Retry-After header says, as seconds or as a date; None where it says nothing that can be read."""
    if value is None:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        until = parsedate_to_datetime(value)
    except (TypeError, ValueError):
        return None
    if until.tzinfo is None:
        until = until.replace(tzinfo=timezone.utc)
    return max(0.0, (until - (now or datetime.now(timezone.utc))).total_seconds())


def is_silence(transfer: Transfer) -> bool:
    """Whether nothing came that is an answer; a wrong one is, and so is one whose body breaks off."""
    return not transfer.status and transfer.reason is not None and transfer.reason not in _WRONG_ANSWERS


def is_error(transfer: Transfer) -> bool:
    """Whether the site says that it is out of order, which may be the URL's fault or the site's."""
    return transfer.status in _OUT_OF_ORDER


def fails_all_urls(failure: FetchFailure, *, has_answered: bool) -> bool:
    """Whether it fails all URLs of a site alike, and will again; has_answered: whether the site ever did."""
    reason = failure.reason
    return reason == FetchReason.address_not_public.value or (
        reason == FetchReason.tls_failed.value and not has_answered
    )


def is_worth_repeating(failure: FetchFailure) -> bool:
    return failure.reason in _WORTH_REPEATING


def means_no_robots(failure: FetchFailure) -> bool:
    """Whether a site has no robots.txt, by RFC 9309, 2.3.1: what cannot be had otherwise forbids everything."""
    if failure.reason == FetchReason.too_many_redirects.value:
        return True
    return failure.reason.startswith("http_4") and failure.reason != "http_429"


def robots_verdict(failure: FetchFailure, *, was_redirected: bool) -> FetchFailure:
    """Why a site's URLs fail when its robots.txt cannot be had: if nothing can be had of it, for that reason."""
    return failure if failure.reason in _NO_CONNECTION and not was_redirected else ROBOTS_UNREACHABLE


def _read(transfer: Transfer, url: Url) -> Fetched | FetchFailure | Url:
    status, headers = transfer.status, transfer.headers
    if status in _REDIRECTS and headers is not None and headers.location:
        try:
            return parse_url(headers.location, base=url)
        except UrlError as error:
            return error.failure
    if status and status != 200:
        return status_failure(status)
    if transfer.reason is not None:
        return FetchFailure(transfer.reason.value, transfer.message)
    if transfer.is_cut and not transfer.wanted.takes_part:
        return TOO_MANY_BYTES
    data = unpack(transfer.body, headers.content_encoding if headers else "", transfer.wanted.max_bytes)
    return data if isinstance(data, FetchFailure) else Fetched(data, str(url))
