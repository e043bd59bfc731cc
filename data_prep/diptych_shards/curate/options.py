"""The options that decide which pairs are kept."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diptych.documents import parse_json
from diptych.errors import UserError
from diptych.files import cannot, read_text, sha256_of
from diptych.terminal import unknown_word
from diptych_shards.curate.blocking import HostList, PhraseList, read_lines
from diptych_shards.curate.rules import RULES, CaptionLimits

DUPLICATES = ("near", "exact", "keep")

_LEAST = {
    "pairs_per_query": 1,
    "seed": 0,
    "pairs_per_part": 1,
    "min_characters": 0,
    "max_characters": 1,
    "min_words": 0,
}


class CurateError(UserError):
    """The command cannot be carried out; the message is one line for its user."""


@dataclass(frozen=True, kw_only=True)
class CurateOptions:
    """Equal options and equal input give equal pairs."""

    queries: Path | None = None
    """A file of one query a line; None: captions are not matched, and pairs not balanced."""
    pairs_per_query: int = 20_000
    """t of the formula in `balance`."""
    seed: int = 0
    languages: tuple[str, ...] = ()
    """The languages to keep; `und` keeps pairs whose language is not known. Empty: keep all, and identify none."""
    min_characters: int = CaptionLimits.min_characters
    max_characters: int = CaptionLimits.max_characters
    min_words: int = CaptionLimits.min_words
    blocked_phrases: tuple[Path, ...] = ()
    blocked_hosts: tuple[Path, ...] = ()
    skip: tuple[str, ...] = ()
    """Caption rules that are not applied."""
    duplicates: str = "near"
    """Which duplicates are dropped; `exact` keeps near-duplicates, `keep` keeps all."""
    writes_dropped: bool = False
    url_column: str | None = None
    caption_column: str | None = None
    pairs_per_part: int = 500_000
    """A part of the output ends once it has so many pairs."""

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise CurateError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        for name, bits in (("seed", 64), ("pairs_per_query", 63)):
            if getattr(self, name) >= 2**bits:
                raise CurateError(f"{name} is {getattr(self, name)}; it must be below 2**{bits}")
        if self.max_characters < self.min_characters:
            raise CurateError(f"max_characters {self.max_characters} is below min_characters {self.min_characters}")
        if self.duplicates not in DUPLICATES:
            raise CurateError(unknown_word("kind of duplicates", self.duplicates, DUPLICATES))
        unknown = sorted(set(self.skip) - set(RULES))
        if unknown:
            raise CurateError(unknown_word("rule", unknown[0], [*RULES]))

    def limits(self) -> CaptionLimits:
        return CaptionLimits(
            min_characters=self.min_characters,
            max_characters=self.max_characters,
            min_words=self.min_words,
            blocked=PhraseList.of(line for path in self.blocked_phrases for line in read_lines(path)),
        )

    def hosts(self) -> HostList:
        return HostList.of(line for path in self.blocked_hosts for line in read_lines(path))

    def record(self) -> dict[str, Any]:
        """What must be equal for a stopped run to resume: the options, with hashes of the files that they name."""
        record = dict(vars(self))
        for name in ("queries", "blocked_phrases", "blocked_hosts"):
            paths = record[name] if isinstance(record[name], tuple) else [record[name]] if record[name] else []
            record[name] = [_content(path) for path in paths]
        return {name: list(value) if isinstance(value, tuple) else value for name, value in record.items()}


def _content(path: Path) -> str:
    try:
        return sha256_of(path)
    except OSError as error:
        raise cannot(error, path, "read", "name a file of one entry a line") from error


def _list_in(path: Path) -> list[str]:
    try:
        queries = parse_json(read_text(path, "give a file of queries"))
    except json.JSONDecodeError as error:
        raise CurateError(
            f"{path} is not JSON: {error}; give a list of texts, or a file with a query a line"
        ) from error
    if not isinstance(queries, list) or not all(isinstance(query, str) for query in queries):
        raise CurateError(f"{path} is not a list of texts; give one, or a file of one query a line")
    return queries


def read_queries(path: Path) -> list[str]:
    """Read the queries of a file, each once, in the file's order, without spaces around them.

    The file has one a line or, if it is a .json, a list of texts, as MetaCLIP's metadata.json has.
    """
    lines = _list_in(path) if path.suffix == ".json" else read_lines(path)
    queries = list(dict.fromkeys(query for line in lines if (query := line.strip())))
    if not queries:
        raise CurateError(f"{path} has no query; give a file of one query a line")
    return queries
