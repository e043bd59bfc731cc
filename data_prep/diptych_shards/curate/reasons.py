"""Why a pair is dropped, in the order in which it is asked."""

from __future__ import annotations

from diptych_shards.curate.rules import RULES

KEPT = "kept"
REASONS = (
    KEPT,
    "no_url",
    "blocked_host",
    *RULES,
    "no_query",
    "language",
    "exact_duplicate",
    "near_duplicate",
    "balanced_away",
)
"""A pair's reason is stored as its place here."""
CODES = {reason: code for code, reason in enumerate(REASONS)}
MEANINGS = {
    "kept": "stays",
    "no_url": "its address is not one of the web (http, https)",
    "blocked_host": "its address is on a list of hosts",
    "empty": "it has no caption",
    "too_short": "its caption has too few characters or words",
    "too_long": "its caption has too many characters",
    "file_name": "its caption is the name of a file",
    "address": "its caption is an address of the web or of mail",
    "markup": "its caption has pieces of HTML, templates or scripts",
    "boilerplate": "its caption says that there is a picture, not what is on it",
    "few_letters": "its caption is numbers and signs for the most part",
    "repetition": "its caption says the same again and again",
    "blocked_phrase": "its caption has a phrase of a list",
    "no_query": "no query stands in its caption",
    "language": "its language is not one of those to keep",
    "exact_duplicate": "the same address with the same caption is there already",
    "near_duplicate": "the same picture, most likely, with nearly the same caption is there already",
    "balanced_away": "its queries have more pairs than they keep",
}
