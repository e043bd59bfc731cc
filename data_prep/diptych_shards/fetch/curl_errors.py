"""Why libcurl gave a transfer up, in the words of `FetchReason`."""

from __future__ import annotations

import pycurl

from diptych_shards.fetch.outcome import FetchReason

_E_TOO_LARGE = 100  # not named by pycurl; before libcurl 8.6 its message alone tells

_REASONS = {
    pycurl.E_URL_MALFORMAT: FetchReason.bad_url,
    pycurl.E_COULDNT_RESOLVE_HOST: FetchReason.dns_failed,
    pycurl.E_COULDNT_CONNECT: FetchReason.connect_failed,
    pycurl.E_OPERATION_TIMEDOUT: FetchReason.connect_timeout,  # the only clock of curl that is set
    pycurl.E_GOT_NOTHING: FetchReason.no_answer,
    pycurl.E_SEND_ERROR: FetchReason.connection_reset,
    pycurl.E_RECV_ERROR: FetchReason.connection_reset,
    pycurl.E_PARTIAL_FILE: FetchReason.truncated_body,
    pycurl.E_BAD_CONTENT_ENCODING: FetchReason.bad_encoding,
    **dict.fromkeys(
        [
            pycurl.E_SSL_CONNECT_ERROR,
            pycurl.E_PEER_FAILED_VERIFICATION,
            pycurl.E_SSL_CIPHER,
            pycurl.E_SSL_ISSUER_ERROR,
            pycurl.E_SSL_INVALIDCERTSTATUS,
        ],
        FetchReason.tls_failed,
    ),
}
_MESSAGES = {
    FetchReason.bad_url: "not a URL",
    FetchReason.dns_failed: "host not found",
    FetchReason.connect_failed: "connection failed",
    FetchReason.connect_timeout: "connection timed out",
    FetchReason.tls_failed: "TLS failed",
    FetchReason.no_answer: "connection closed without an answer",
    FetchReason.connection_reset: "connection reset",
    FetchReason.truncated_body: "body shorter than announced",
    FetchReason.bad_encoding: "encoding that was not asked for",
    FetchReason.bad_answer: "answer is not HTTP",
    FetchReason.headers_too_large: "headers too large",
}


def explain_curl_error(number: int, message: str) -> tuple[FetchReason, str]:
    """The reason, and the message of ours for it.

    number, message: as `CurlMulti.info_read` gives them.
    """
    if number == _E_TOO_LARGE or "response headers" in message:
        reason = FetchReason.headers_too_large
    else:
        reason = _REASONS.get(number, FetchReason.bad_answer)
    return reason, _MESSAGES[reason]
